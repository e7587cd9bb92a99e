"""An experiment's models: saved in folders, and taken from them as shards or as transformers has them.

Shapes: B windows, L tokens of the longest, T packed rows, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedModel

from braid_rpc.errors import NotFoundError
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

# Natural log-probabilities (T,) of targets (T,), each behind its row of packed windows (T,) of these lengths.
Scorer = Callable[[Tensor, Sequence[int], Tensor], Tensor]

_CACHE_BYTES = 2**20  # nothing is generated here


def save_model(
    model: PreTrainedModel,
    folder: Path,
    *,
    tokenizer: Path | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Save a model, with the files of a tokenizer's folder; the folder appears complete or not at all."""
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    if tokenizer is not None:
        shutil.copytree(tokenizer, building)
    model.save_pretrained(building, safe_serialization=True)
    if recipe is not None:
        (building / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def check_trained(folder: Path) -> None:
    """Raises: NotFoundError if a run's model has gone, though the run counts as finished."""
    if not (folder / "config.json").is_file():
        raise NotFoundError(
            f"{folder}: got no model, expected the one that a finished run has left there; remove the file of "
            "finished runs to train it again"
        )


def shard_config(name: str, model: str) -> ShardConfig:
    """Of a shard that scores and trains, on its caller's threads."""
    return ShardConfig(name=name, model=model, threads=0, cache_bytes=_CACHE_BYTES)


def load_backend(folder: Path, name: str = "") -> ShardBackend:
    """A model as a shard, named as its folder is or otherwise."""
    return ShardBackend.load(shard_config(name or folder.name, str(folder)))


def load_llama(folder: Path) -> LlamaForCausalLM:
    """A model that was trained here, as transformers has it. Raises: as `check_trained`."""
    check_trained(folder)
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def model_scorer(model: Any) -> Scorer:
    """A model of transformers alone."""

    def score(token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
        # What is behind a window changes nothing in it.
        ids_BL = pad_sequence(list(torch.split(token_ids_T, list(lengths))), batch_first=True)
        logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
        is_row_BL = torch.arange(ids_BL.shape[1]) < torch.tensor(lengths)[:, None]
        return -functional.cross_entropy(logits_BLV[is_row_BL].float(), targets_T, reduction="none")

    return score
