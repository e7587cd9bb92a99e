"""How the texts of an experiment are divided: what trains contestants, what validates, what tests. Knows no tokens.

Nothing that is on one side is on another, which a name or a text decides by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from braid_orchestrator.demo.corpus import Document, Split
from braid_orchestrator.demo.fuse import even_sample

MIX = "mix"
_VALIDATION_PERCENT = 25


@dataclass(frozen=True, slots=True)
class TextAmounts:
    """How much of what, in characters: ``mixed_chars`` of mixed text and ``pure_chars`` of each kind train;
    ``validation_chars`` of the mix and of each kind validate, ``test_chars`` test.

    Of the files that the corpus has for specialists, ``kept_percent`` are kept from the models that are trained here,
    to train the contestants: with the fusion split's files alone, contestants learn these rather than how to mix."""

    mixed_chars: int = 1_600_000
    pure_chars: int = 250_000
    kept_percent: int = 45
    validation_chars: int = 40_000
    test_chars: int = 120_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ContestTexts:
    """``train`` all together; ``validation`` and ``test`` by the texts' names."""

    train: list[str]
    validation: dict[str, list[str]]
    test: dict[str, list[str]]


def middles(texts: Sequence[str], num_chars: int) -> list[str]:
    """Of every text as much as `even_sample` takes, whole lines out of its middle: files begin alike."""
    parts = []
    for text, size in zip(sorted(texts, key=len), map(len, even_sample(texts, num_chars)), strict=True):
        start = text.rfind("\n", 0, (len(text) - size) // 2 + 1) + 1
        parts.append(text[start : start + size])
    return parts


def divide(
    documents: Mapping[Split, Sequence[Document]], amounts: TextAmounts
) -> tuple[list[Document], list[Document], list[Document]]:
    """Of a corpus's splits: what trains contestants, what validates, what tests, by file."""
    fusion = documents.get("fusion", ())
    validation = [one for one in fusion if percentile("validation", one.source) < _VALIDATION_PERCENT]
    return (
        [one for one in documents.get("specialist", ()) if is_kept(one, amounts)]
        + [one for one in fusion if one not in validation],
        validation,
        list(documents.get("held_out", ())),
    )


def is_kept(document: Document, amounts: TextAmounts) -> bool:
    """Whether a file of the specialist split trains contestants."""
    return percentile("kept", document.source) < amounts.kept_percent


def percentile(purpose: str, name: str) -> int:
    """0 … 99 by the name alone: what a file says, of whatever kind, is on one side."""
    digest = hashlib.sha256(f"{purpose} {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100
