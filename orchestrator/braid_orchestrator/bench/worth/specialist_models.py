"""The experiment's models as its contestants take them: from a folder as shards or plain models, and their soup.

Shapes: B windows, L tokens of the longest, T packed rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from braid_orchestrator.bench.worth.specialist_parents import KINDS
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

# Natural log-probabilities (T,) of targets (T,), each behind its row of packed windows (T,) of these lengths.
Scorer = Callable[[Tensor, Sequence[int], Tensor], Tensor]

_CACHE_BYTES = 2**20  # nothing is generated here


def shard_config(name: str, model: str) -> ShardConfig:
    """Of a shard that scores and trains, on its caller's threads."""
    return ShardConfig(name=name, model=model, threads=0, cache_bytes=_CACHE_BYTES)


def load_backend(folder: Path, model: str, name: str | None = None) -> ShardBackend:
    """A specialist as a shard."""
    return ShardBackend.load(shard_config(name or model, str(folder / model)))


def load_model(folder: Path, name: str) -> LlamaForCausalLM:
    """A specialist, or the start, as transformers has it."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    return model.eval()


def soup(folder: Path) -> LlamaForCausalLM:
    """The mean of both specialists' weights (Wortsman et al., 2022)."""
    model, other = (load_model(folder, kind) for kind in KINDS)
    with torch.no_grad():
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            mine.lerp_(its, 0.5)
    return model


def model_scorer(model: Any) -> Scorer:
    """A model of transformers alone."""

    def score(token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
        # What is behind a window changes nothing in it.
        ids_BL = pad_sequence(list(torch.split(token_ids_T, list(lengths))), batch_first=True)
        logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
        is_row_BL = torch.arange(ids_BL.shape[1]) < torch.tensor(lengths)[:, None]
        return -functional.cross_entropy(logits_BLV[is_row_BL].float(), targets_T, reduction="none")

    return score
