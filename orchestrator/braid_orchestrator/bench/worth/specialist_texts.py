"""The texts of the experiment with two specialists: what trains the contestants, and what they are measured on.

The corpus's specialist split is divided by file: the specialists read one part, the other trains the contestants. The
fusion split trains and validates, and held-out files test. No file is on two sides. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from braid_orchestrator.bench.worth.specialist_parents import KINDS
from braid_orchestrator.bench.worth.texts import MIX, ContestTexts, TextAmounts, divide, is_kept, middles
from braid_orchestrator.demo.corpus import Corpus, Document, Kind, Split, mixed_texts, read_modules
from braid_orchestrator.demo.fuse import even_sample

TEXTS = (MIX, *KINDS)


@dataclass(frozen=True, slots=True)
class TextRecipe(TextAmounts):
    """``mix`` is ``modules``: source files as they stand, with their comments and docstrings; or ``parts``: documents
    in which parts of code and prose of different files alternate."""

    mix: Literal["modules", "parts"] = "modules"


def specialist_texts(corpus: Corpus, recipe: TextRecipe) -> ContestTexts:
    """Raises: ValueError where a kind of text is missing from a part."""
    modules: Mapping[Split, Sequence[Document]] = read_modules(corpus) if recipe.mix == "modules" else {}
    pure = divide(
        {"specialist": corpus.specialist, "fusion": corpus.fusion, "held_out": corpus.held_out}, recipe
    )
    mixed = divide(modules, recipe)
    code, prose = (_texts(pure[0], kind) for kind in KINDS)
    if recipe.mix == "modules":
        train = even_sample([module.text for module in mixed[0]], recipe.mixed_chars)
    else:
        train = mixed_texts(code, prose, num_chars=recipe.mixed_chars, seed=recipe.seed)
    for texts in (code, prose):
        train += even_sample(texts, recipe.pure_chars)
    return ContestTexts(
        train,
        _held_out(pure[1], mixed[1], recipe.validation_chars, seed=1),
        _held_out(pure[2], mixed[2], recipe.test_chars, seed=2),
    )


def texts_of_specialist(corpus: Corpus, kind: Kind, recipe: TextRecipe) -> list[str]:
    """What the specialist of that kind reads."""
    return _texts([one for one in corpus.specialist if not is_kept(one, recipe)], kind)


def _held_out(
    pure: Sequence[Document], modules: Sequence[Document], num_chars: int, seed: int
) -> dict[str, list[str]]:
    """The same for every seed of the recipe, so that seeds compare. Without modules the mix is of parts."""
    code, prose = (_texts(pure, kind) for kind in KINDS)
    if modules:
        mix = middles([module.text for module in modules], num_chars)
    else:
        mix = mixed_texts(code, prose, num_chars=num_chars, seed=seed)
    return {MIX: mix, KINDS[0]: middles(code, num_chars), KINDS[1]: middles(prose, num_chars)}


def _texts(documents: Sequence[Document], kind: str) -> list[str]:
    return [document.text for document in documents if document.kind == kind]
