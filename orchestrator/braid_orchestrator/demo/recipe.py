"""Everything that decides what the demo becomes, as one frozen value with a hash. Knows no training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

# Raise it when code changes what a recipe leads to.
RECIPE_FORMAT = 3

Kind = Literal["code", "prose"]


@dataclass(frozen=True, slots=True)
class TokenizerRecipe:
    """``kind``: ``bpe`` merges bytes, as GPT-2 does; ``pieces`` merges characters of words that carry their space
    before them, as SentencePiece does; ``bytes`` merges nothing."""

    name: str
    kind: Literal["bpe", "pieces", "bytes"]
    vocab_size: int


@dataclass(frozen=True, slots=True)
class SpecialistRecipe:
    """One small Llama and its training on the kinds of text that it ``reads``. Windows of ``window`` tokens, and of
    ``long_window`` for the last ``long_share`` of the steps; every step takes ``step_tokens`` tokens."""

    name: str
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    num_steps: int
    max_seconds: float
    reads: tuple[Kind, ...]
    tokenizer: str = "shared"
    context_length: int = 1024
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
    """The training of the fusion modules and the readout, in steps of ``step_tokens`` tokens."""

    num_steps: int
    max_seconds: float
    num_chars: int
    window: int = 128
    step_tokens: int = 1024
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class DemoRecipe:
    """The whole. ``corpus_share`` of the files are read; ``evaluation_chars`` is of each kind of held-out text."""

    tokenizers: tuple[TokenizerRecipe, ...]
    tokenizer_chars: int
    specialists: tuple[SpecialistRecipe, ...]
    fusion: FusionRecipe
    evaluation_chars: int
    evaluation_window: int = 512
    corpus_share: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def tokenizer_of(self, specialist: SpecialistRecipe) -> TokenizerRecipe:
        """The tokenizer that a specialist reads by."""
        return next(one for one in self.tokenizers if one.name == specialist.tokenizer)

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
    tokenizers=(TokenizerRecipe("shared", "bpe", 2048),),
    tokenizer_chars=4_000_000,
    specialists=(
        SpecialistRecipe("code", 128, 4, 2, 384, num_steps=600, max_seconds=165.0, reads=("code",)),
        SpecialistRecipe("prose", 96, 5, 2, 256, num_steps=800, max_seconds=165.0, reads=("prose",), seed=1),
    ),
    fusion=FusionRecipe(num_steps=220, max_seconds=65.0, num_chars=1_000_000),
    evaluation_chars=45_000,
)

# Three shards of three tokenizers, widths and depths; the third reads bytes, so it knows how words are spelt.
MIXED = replace(
    FULL,
    tokenizers=(
        TokenizerRecipe("code", "bpe", 2048),
        TokenizerRecipe("prose", "pieces", 1536),
        TokenizerRecipe("bytes", "bytes", 257),
    ),
    specialists=(
        replace(FULL.specialists[0], tokenizer="code", max_seconds=130.0),
        replace(FULL.specialists[1], tokenizer="prose", max_seconds=130.0),
        SpecialistRecipe(
            "bytes",
            80,
            3,
            2,
            224,
            num_steps=500,
            max_seconds=130.0,
            reads=("code", "prose"),
            tokenizer="bytes",
            context_length=4096,
            window=256,
            long_window=1024,
            step_tokens=2048,
            seed=2,
        ),
    ),
    fusion=replace(FULL.fusion, num_steps=160, max_seconds=110.0, step_tokens=512),
    evaluation_chars=12_000,
    evaluation_window=256,
)


def _quick(full: DemoRecipe) -> DemoRecipe:
    sizes = {"shared": 512, "code": 512, "prose": 400, "bytes": 257}
    return replace(
        full,
        tokenizers=tuple(replace(one, vocab_size=sizes[one.name]) for one in full.tokenizers),
        tokenizer_chars=200_000,
        specialists=tuple(
            replace(
                specialist,
                width=32 * (1 + (i == 0)),
                num_heads=2,
                mlp_width=64,
                num_steps=60,
            )
            for i, specialist in enumerate(full.specialists)
        ),
        fusion=replace(full.fusion, num_steps=25, num_chars=60_000, step_tokens=512),
        evaluation_chars=5_000,
        evaluation_window=256,
        corpus_share=0.1,
    )


@dataclass(frozen=True, slots=True)
class Demo:
    """One of the braids that `braid demo` builds: its file, the folder of its models, and how they come about."""

    config: str
    folder: str
    full: DemoRecipe
    quick: DemoRecipe


DEMOS = {
    "demo": Demo("deploy/braid.yaml", ".braid/demo", FULL, _quick(FULL)),
    "mixed": Demo("deploy/mixed.yaml", ".braid/mixed", MIXED, _quick(MIXED)),
}
QUICK = DEMOS["demo"].quick
