"""Two specialists of one short common start, trained from nothing, and what they weigh on average. Knows no braid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from braid_fusion.training import Progress
from braid_orchestrator.bench.worth.llamas import LlamaRecipe, train_llama
from braid_orchestrator.bench.worth.models import load_llama
from braid_orchestrator.demo.corpus import Kind

KINDS: tuple[Kind, Kind] = ("code", "prose")
START = "start"


@dataclass(frozen=True, slots=True)
class ParentRecipe(LlamaRecipe):
    """The start reads both kinds for ``start_steps``, then each reads its own for ``own_steps``."""

    start_steps: int = 120
    own_steps: int = 1500


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
    num_steps, start = (recipe.start_steps, "") if name == START else (recipe.own_steps, START)
    return train_llama(
        name, recipe, num_steps, tokenizer, texts, folder, start=start, on_progress=on_progress
    )


def soup(folder: Path) -> LlamaForCausalLM:
    """The mean of both specialists' weights (Wortsman et al., 2022)."""
    model, other = (load_llama(folder / kind) for kind in KINDS)
    with torch.no_grad():
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            mine.lerp_(its, 0.5)
    return model
