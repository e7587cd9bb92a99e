"""Everything that decides what the demo becomes, as one frozen value with a hash. Knows no training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

# Raise it when code changes what a recipe leads to.
RECIPE_FORMAT = 1


@dataclass(frozen=True, slots=True)
class SpecialistRecipe:
    """One small Llama and its training. Windows of ``window`` tokens, and of ``long_window`` for the last
    ``long_share`` of the steps; every step takes ``step_tokens`` tokens."""

    name: Literal["code", "prose"]
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    num_steps: int
    max_seconds: float
    window: int = 128
    long_window: int = 512
    long_share: float = 0.15
    rotary_base: float = 1000.0
    step_tokens: int = 1024
    learning_rate: float = 0.03
    matrix_learning_rate: float = 0.015
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FusionRecipe:
    """The training of the fusion modules and the readout, on ``threads`` cores if there are as many."""

    num_steps: int
    max_seconds: float
    num_chars: int
    window: int = 128
    step_tokens: int = 1024
    learning_rate: float = 3e-3
    threads: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class DemoRecipe:
    """The whole. ``corpus_share`` of the files are read; ``evaluation_chars`` is of each kind of held-out text."""

    vocab_size: int
    tokenizer_chars: int
    context_length: int
    specialists: tuple[SpecialistRecipe, ...]
    fusion: FusionRecipe
    evaluation_chars: int
    evaluation_window: int = 512
    corpus_share: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def specialists_part(self) -> dict[str, Any]:
        """What the tokenizer and the specialists depend on."""
        return {key: value for key, value in self.to_dict().items() if not key.startswith(_AFTERWARDS)}

    def fusion_part(self) -> dict[str, Any]:
        """What comes after them."""
        return {key: value for key, value in self.to_dict().items() if key.startswith(_AFTERWARDS)}


_AFTERWARDS = ("fusion", "evaluation")


def digest(parts: Any) -> str:
    """SHA-256 (hex, 16 digits) of anything that JSON can hold, and of the recipe's format."""
    text = json.dumps([RECIPE_FORMAT, parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


FULL = DemoRecipe(
    vocab_size=2048,
    tokenizer_chars=4_000_000,
    context_length=1024,
    specialists=(
        SpecialistRecipe("code", 128, 4, 2, 384, num_steps=600, max_seconds=165.0),
        SpecialistRecipe("prose", 96, 5, 2, 256, num_steps=800, max_seconds=165.0, seed=1),
    ),
    fusion=FusionRecipe(num_steps=220, max_seconds=65.0, num_chars=1_000_000),
    evaluation_chars=45_000,
)

QUICK = replace(
    FULL,
    vocab_size=512,
    tokenizer_chars=200_000,
    specialists=tuple(
        replace(specialist, width=32 * (2 - i), num_layers=4 - i, num_heads=2, mlp_width=64, num_steps=60)
        for i, specialist in enumerate(FULL.specialists)
    ),
    fusion=replace(FULL.fusion, num_steps=25, num_chars=60_000, step_tokens=512, threads=1),
    evaluation_chars=5_000,
    evaluation_window=256,
    corpus_share=0.1,
)
