"""The texts of the experiment with two specialists: what trains the contestants, and what they are measured on.

The corpus's specialist split is divided by file: the specialists read one part, the other trains the contestants. The
fusion split trains and validates, and held-out files test. No file is on two sides. Knows no tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from braid_orchestrator.bench.worth.specialist_parents import KINDS
from braid_orchestrator.demo.corpus import Corpus, Document, Kind, mixed_texts
from braid_orchestrator.demo.fuse import even_sample

MIX = "mix"
TEXTS = (MIX, *KINDS)
_VALIDATION_PERCENT = 25


@dataclass(frozen=True, slots=True)
class TextRecipe:
    """How much of what. ``mixed_chars`` of documents in which parts of both kinds alternate and ``pure_chars`` of
    each kind train; ``held_out_chars`` of the mix and of each kind validate, and as many test.

    Of the files that the corpus has for specialists, ``kept_percent`` are kept from them, to train the contestants:
    with the fusion split's files alone, contestants learn these rather than how to mix."""

    mixed_chars: int = 1_600_000
    pure_chars: int = 200_000
    kept_percent: int = 45
    held_out_chars: int = 60_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SpecialistTexts:
    """``train`` all together; ``validation`` and ``test`` by the names of `TEXTS`."""

    train: list[str]
    validation: dict[str, list[str]]
    test: dict[str, list[str]]


def specialist_texts(corpus: Corpus, recipe: TextRecipe) -> SpecialistTexts:
    """Raises: ValueError where a kind of text is missing from a part."""
    training = [one for one in corpus.specialist if _is_kept(one, recipe)]
    training += [one for one in corpus.fusion if not _validates(one)]
    validating = [one for one in corpus.fusion if _validates(one)]
    code, prose = (_texts(training, kind) for kind in KINDS)
    train = mixed_texts(code, prose, num_chars=recipe.mixed_chars, seed=recipe.seed)
    for texts in (code, prose):
        train += even_sample(texts, recipe.pure_chars)
    return SpecialistTexts(
        train,
        _held_out(validating, recipe, seed=1),
        _held_out(corpus.held_out, recipe, seed=2),
    )


def texts_of_specialist(corpus: Corpus, kind: Kind, recipe: TextRecipe) -> list[str]:
    """What the specialist of that kind reads."""
    return _texts([one for one in corpus.specialist if not _is_kept(one, recipe)], kind)


def _held_out(documents: Sequence[Document], recipe: TextRecipe, seed: int) -> dict[str, list[str]]:
    """The same for every seed of the recipe, so that seeds compare."""
    code, prose = (_texts(documents, kind) for kind in KINDS)
    return {
        MIX: mixed_texts(code, prose, num_chars=recipe.held_out_chars, seed=seed),
        **{
            kind: even_sample(texts, recipe.held_out_chars)
            for kind, texts in zip(KINDS, (code, prose), strict=True)
        },
    }


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
