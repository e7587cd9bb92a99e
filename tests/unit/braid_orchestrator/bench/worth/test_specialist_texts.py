"""No file is on two sides of the experiment, and all seeds are measured on the same text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from braid_orchestrator.bench.worth.specialist_texts import (
    TEXTS,
    TextRecipe,
    specialist_texts,
    texts_of_specialist,
)
from braid_orchestrator.demo.corpus import Corpus, Document, Kind, Split

RECIPE = TextRecipe(
    mix="parts", mixed_chars=40_000, pure_chars=2_000, validation_chars=2_000, test_chars=2_000
)


def documents(split: Split, count: int) -> tuple[Document, ...]:
    """Each line names its file."""
    kinds: tuple[Kind, ...] = ("code", "prose")
    return tuple(
        Document(f"{split}{n}", kind, f"{kind} <{split}{n}>\n" * 30) for n in range(count) for kind in kinds
    )


CORPUS = Corpus(documents("specialist", 30), documents("fusion", 20), documents("held_out", 8))


def files(texts: list[str]) -> set[str]:
    return set(re.findall(r"<([a-z_]+\d+)>", "".join(texts)))


def test_no_file_is_on_two_sides() -> None:
    texts = specialist_texts(CORPUS, RECIPE)
    sides = [
        files([text for kind in ("code", "prose") for text in texts_of_specialist(CORPUS, kind, RECIPE)]),
        files(texts.train),
        files([text for parts in texts.validation.values() for text in parts]),
        files([text for parts in texts.test.values() for text in parts]),
    ]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides)) == 58


@pytest.mark.parametrize("share", [0, 100])
def test_as_much_is_kept_from_the_specialists_as_was_said(share: int) -> None:
    recipe = replace(RECIPE, kept_percent=share)
    assert len(texts_of_specialist(CORPUS, "code", recipe)) == (0 if share else 30)


def test_seeds_differ_in_what_trains_and_not_in_what_is_measured() -> None:
    first, second = (specialist_texts(CORPUS, replace(RECIPE, seed=seed)) for seed in (0, 1))
    assert first.train != second.train
    assert (first.validation, first.test) == (second.validation, second.test)
    assert tuple(first.test) == TEXTS


def test_the_mix_mixes_and_the_others_do_not() -> None:
    test = specialist_texts(CORPUS, RECIPE).test
    kinds = {name: set(re.findall("(code|prose) <", "".join(parts))) for name, parts in test.items()}
    assert kinds == {"mix": {"code", "prose"}, "code": {"code"}, "prose": {"prose"}}
