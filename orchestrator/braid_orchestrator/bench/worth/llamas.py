"""Small Llamas with a tokenizer of their own, trained from nothing or from one another, on one core each.

They live in a folder: their tokenizer's, and a model folder each. Knows no experiment and no braid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer

from braid_fusion.training import Progress
from braid_orchestrator.bench.worth.models import load_llama, save_model
from braid_orchestrator.demo.pretrain import make_model, pretrain
from braid_orchestrator.demo.recipe import SpecialistRecipe, TokenizerRecipe
from braid_orchestrator.demo.tokenizer import encode_documents, save_tokenizer, train_tokenizer

TOKENIZER_FOLDER = "tokenizer"
_NEVER_S = 1e9  # steps alone decide, so that a busy machine gives the same models


@dataclass(frozen=True, slots=True)
class LlamaRecipe:
    """Llamas of one shape; every step takes ``step_tokens`` tokens."""

    vocab_size: int = 2048
    tokenizer_chars: int = 4_000_000
    width: int = 128
    num_layers: int = 4
    num_heads: int = 2
    mlp_width: int = 384
    context_length: int = 1024
    step_tokens: int = 1024
    seed: int = 0

    def of(self, name: str, num_steps: int) -> SpecialistRecipe:
        """One model's training, in the demo's terms. What it reads is up to the caller."""
        return SpecialistRecipe(
            name,
            self.width,
            self.num_layers,
            self.num_heads,
            self.mlp_width,
            num_steps,
            _NEVER_S,
            (),
            context_length=self.context_length,
            step_tokens=self.step_tokens,
            seed=self.seed,
        )


def train_llama_tokenizer(
    texts: Sequence[Sequence[str]],
    recipe: LlamaRecipe,
    folder: Path,
    kind: Literal["bpe", "bytes"] = "bpe",
) -> Tokenizer:
    """Train the tokenizer on what the models read, texts by kind, and save it. One of ``bytes`` has nothing to learn,
    and a vocabulary of its own."""
    trained = train_tokenizer(
        TokenizerRecipe("shared", kind, recipe.vocab_size), texts, recipe.tokenizer_chars
    )
    save_tokenizer(trained, folder / TOKENIZER_FOLDER, recipe.context_length)
    return trained


def load_llama_tokenizer(folder: Path) -> Tokenizer:
    """What `train_llama_tokenizer` saved."""
    return Tokenizer.from_file(str(folder / TOKENIZER_FOLDER / "tokenizer.json"))


def train_llama(
    name: str,
    recipe: LlamaRecipe,
    num_steps: int,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    folder: Path,
    *,
    start: str = "",
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Train a model and save it in ``folder / name``.

    Args:
        start: the model in ``folder`` that it goes on from; without it, it starts from nothing.

    Returns: its training record.
    """
    plan = recipe.of(name, num_steps)
    model = load_llama(folder / start) if start else make_model(plan, tokenizer.get_vocab_size())
    tokens = torch.tensor(encode_documents(tokenizer, texts), dtype=torch.int32)
    started = time.perf_counter()
    record = pretrain(plan, model, tokens, on_progress).to_dict()
    record["seconds"] = time.perf_counter() - started
    save_model(model, folder / name, tokenizer=folder / TOKENIZER_FOLDER, recipe=asdict(recipe))
    return record
