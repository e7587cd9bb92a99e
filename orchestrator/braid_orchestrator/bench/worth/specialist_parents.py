"""Two specialists of one short common start, trained from nothing on one core each, and the tokenizer they share.

They live in a folder: ``tokenizer/``, and one model folder each, which appears complete or not at all. Knows no
braid.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from braid_fusion.training import Progress
from braid_orchestrator.demo.corpus import Kind
from braid_orchestrator.demo.pretrain import make_model, pretrain
from braid_orchestrator.demo.recipe import SpecialistRecipe, TokenizerRecipe
from braid_orchestrator.demo.tokenizer import encode_documents, save_tokenizer, train_tokenizer

KINDS: tuple[Kind, Kind] = ("code", "prose")
START = "start"
_NEVER_S = 1e9  # steps alone decide, so that a busy machine gives the same models


@dataclass(frozen=True, slots=True)
class ParentRecipe:
    """Llamas of one shape. The start reads both kinds for ``start_steps``, then each reads its own for
    ``own_steps``; every step takes ``step_tokens`` tokens."""

    vocab_size: int = 2048
    tokenizer_chars: int = 4_000_000
    width: int = 128
    num_layers: int = 4
    num_heads: int = 2
    mlp_width: int = 384
    context_length: int = 1024
    start_steps: int = 120
    own_steps: int = 480
    step_tokens: int = 1024
    seed: int = 0

    def of(self, name: str, reads: tuple[Kind, ...], num_steps: int) -> SpecialistRecipe:
        """One model's training, in the demo's terms."""
        return SpecialistRecipe(
            name,
            self.width,
            self.num_layers,
            self.num_heads,
            self.mlp_width,
            num_steps,
            _NEVER_S,
            reads,
            context_length=self.context_length,
            step_tokens=self.step_tokens,
            seed=self.seed,
        )


def train_parent_tokenizer(texts: Sequence[Sequence[str]], recipe: ParentRecipe, folder: Path) -> Tokenizer:
    """Train the tokenizer on what the specialists read, texts by kind, and save it."""
    trained = train_tokenizer(
        TokenizerRecipe("shared", "bpe", recipe.vocab_size), texts, recipe.tokenizer_chars
    )
    save_tokenizer(trained, folder / "tokenizer", recipe.context_length)
    return trained


def train_parent(
    name: str,
    recipe: ParentRecipe,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Train the start, or a specialist (a `Kind`) from it, and save it in ``folder / name``.

    Returns: its training record.
    """
    is_start = name == START
    plan = recipe.of(name, KINDS, recipe.start_steps if is_start else recipe.own_steps)
    if is_start:
        model = make_model(plan, tokenizer.get_vocab_size())
    else:
        model = LlamaForCausalLM.from_pretrained(folder / START, dtype=torch.float32)
    tokens = torch.tensor(encode_documents(tokenizer, texts), dtype=torch.int32)
    started = time.perf_counter()
    record = pretrain(plan, model, tokens, on_progress).to_dict()
    record["seconds"] = time.perf_counter() - started
    building = folder / f".{name}.building"
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(folder / "tokenizer", building)
    model.save_pretrained(building, safe_serialization=True)
    (building / "recipe.json").write_text(json.dumps(asdict(recipe)), encoding="utf-8")
    shutil.rmtree(folder / name, ignore_errors=True)
    building.rename(folder / name)
    return record
