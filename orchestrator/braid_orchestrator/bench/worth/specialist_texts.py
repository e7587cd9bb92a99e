"""The texts of the experiment with two specialists: what trains the contestants, and what they are measured on.

The corpus's specialist split is divided by file: the specialists read one part, the other trains the contestants. The
fusion split trains and validates, and held-out files test. No file is on two sides. Knows no tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from braid_orchestrator.bench.worth.specialist_parents import KINDS
from braid_orchestrator.demo.corpus import Corpus, Document, Kind, Split, mixed_texts, read_modules
from braid_orchestrator.demo.fuse import even_sample

MIX = "mix"
TEXTS = (MIX, *KINDS)
_VALIDATION_PERCENT = 25


@dataclass(frozen=True, slots=True)
class TextRecipe:
    """What is mixed, and how much of what.

    ``mix`` is ``modules``: source files as they stand, with their comments and docstrings; or ``parts``: documents in
    which parts of code and prose of different files alternate. ``mixed_chars`` of it and ``pure_chars`` of each kind
    train; ``validation_chars`` of the mix and of each kind validate, ``test_chars`` test.

    Of the files that the corpus has for specialists, ``kept_percent`` are kept from them, to train the contestants:
    with the fusion split's files alone, contestants learn these rather than how to mix."""

    mix: Literal["modules", "parts"] = "modules"
    mixed_chars: int = 1_600_000
    pure_chars: int = 250_000
    kept_percent: int = 45
    validation_chars: int = 40_000
    test_chars: int = 120_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SpecialistTexts:
    """``train`` all together; ``validation`` and ``test`` by the names of `TEXTS`."""

    train: list[str]
    validation: dict[str, list[str]]
    test: dict[str, list[str]]


def specialist_texts(corpus: Corpus, recipe: TextRecipe) -> SpecialistTexts:
    """Raises: ValueError where a kind of text is missing from a part."""
    modules: Mapping[Split, Sequence[Document]] = read_modules(corpus) if recipe.mix == "modules" else {}

    def divided(documents: Mapping[Split, Sequence[Document]]) -> tuple[list[Document], ...]:
        return (
            [one for one in documents.get("specialist", ()) if _is_kept(one, recipe)]
            + [one for one in documents.get("fusion", ()) if not _validates(one)],
            [one for one in documents.get("fusion", ()) if _validates(one)],
            list(documents.get("held_out", ())),
        )

    pure = divided({"specialist": corpus.specialist, "fusion": corpus.fusion, "held_out": corpus.held_out})
    mixed = divided(modules)
    code, prose = (_texts(pure[0], kind) for kind in KINDS)
    if recipe.mix == "modules":
        train = even_sample([module.text for module in mixed[0]], recipe.mixed_chars)
    else:
        train = mixed_texts(code, prose, num_chars=recipe.mixed_chars, seed=recipe.seed)
    for texts in (code, prose):
        train += even_sample(texts, recipe.pure_chars)
    return SpecialistTexts(
        train,
        _held_out(pure[1], mixed[1], recipe.validation_chars, seed=1),
        _held_out(pure[2], mixed[2], recipe.test_chars, seed=2),
    )


def texts_of_specialist(corpus: Corpus, kind: Kind, recipe: TextRecipe) -> list[str]:
    """What the specialist of that kind reads."""
    return _texts([one for one in corpus.specialist if not _is_kept(one, recipe)], kind)


def _held_out(
    pure: Sequence[Document], modules: Sequence[Document], num_chars: int, seed: int
) -> dict[str, list[str]]:
    """The same for every seed of the recipe, so that seeds compare. Without modules the mix is of parts."""
    code, prose = (_texts(pure, kind) for kind in KINDS)
    if modules:
        mix = _middles([module.text for module in modules], num_chars)
    else:
        mix = mixed_texts(code, prose, num_chars=num_chars, seed=seed)
    return {MIX: mix, KINDS[0]: _middles(code, num_chars), KINDS[1]: _middles(prose, num_chars)}


def _middles(texts: Sequence[str], num_chars: int) -> list[str]:
    """Of every text as much as `even_sample` takes, whole lines out of its middle: files begin alike."""
    parts = []
    for text, size in zip(sorted(texts, key=len), map(len, even_sample(texts, num_chars)), strict=True):
        start = text.rfind("\n", 0, (len(text) - size) // 2 + 1) + 1
        parts.append(text[start : start + size])
    return parts


def _texts(documents: Sequence[Document], kind: str) -> list[str]:
    return [document.text for document in documents if document.kind == kind]


def _validates(document: Document) -> bool:
    return _percentile(document, "validation") < _VALIDATION_PERCENT


def _is_kept(document: Document, recipe: TextRecipe) -> bool:
    return _percentile(document, "kept") < recipe.kept_percent


def _percentile(document: Document, purpose: str) -> int:
    """0 … 99 by the file's name: what a file says, code or prose, is on one side."""
    digest = hashlib.sha256(f"{purpose} {document.source}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100
