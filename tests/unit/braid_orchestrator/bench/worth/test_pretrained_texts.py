"""No document is on two sides of the experiment, and all seeds are measured on the same text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from braid_orchestrator.bench.worth.pretrained_texts import (
    KNOWN,
    PROSE,
    TEXTS,
    KnownText,
    partner_texts,
    pretrained_texts,
    read_known_text,
)
from braid_orchestrator.bench.worth.texts import MIX, TextAmounts
from braid_orchestrator.demo.corpus import Corpus, Document, Kind, Split
from braid_rpc.errors import InvalidRequestError, NotFoundError

AMOUNTS = TextAmounts(mixed_chars=60_000, pure_chars=30_000, validation_chars=5_000, test_chars=5_000)
STORIES = [f"story <story{n}>\n" * 20 for n in range(80)]


def documents(split: Split, count: int) -> tuple[Document, ...]:
    """Each line names its file."""
    kinds: tuple[Kind, ...] = ("code", "prose")
    return tuple(
        Document(f"{split}{n}", kind, f"{kind} <{split}{n}>\n" * 30) for n in range(count) for kind in kinds
    )


CORPUS = Corpus(documents("specialist", 30), documents("fusion", 20), documents("held_out", 8))


def names(texts: list[str]) -> set[str]:
    return set(re.findall(r"<([a-z_]+\d+)>", "".join(texts)))


@pytest.fixture
def known(tmp_path: Path) -> KnownText:
    path = tmp_path / "stories.txt"
    path.write_text("<|endoftext|>\n".join(STORIES), encoding="utf-8")
    return read_known_text(path)


def test_documents_end_where_the_file_says_so(known: KnownText) -> None:
    assert sorted(known.train + known.validation + known.test) == sorted(STORIES)


def test_a_document_that_stands_there_twice_is_one(tmp_path: Path, known: KnownText) -> None:
    path = tmp_path / "twice.txt"
    path.write_text("\n<|endoftext|>\n\n".join([*STORIES, *STORIES, "  "]), encoding="utf-8")
    assert read_known_text(path) == known


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("One story without an end.\n", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=r"one\.txt: got 1 different documents, expected enough"):
        read_known_text(path)
    with pytest.raises(NotFoundError):
        read_known_text(tmp_path / "none.txt")


def test_a_document_on_another_side_is_another_text(known: KnownText) -> None:
    moved = replace(known, train=known.train[1:], test=(*known.test, known.train[0]))
    assert len({known.fingerprint(), moved.fingerprint()}) == 2


def test_nothing_is_on_two_sides(known: KnownText) -> None:
    texts = pretrained_texts(known, CORPUS, AMOUNTS)
    sides = [
        names(partner_texts(CORPUS, AMOUNTS)),
        names(texts.train),
        names([text for parts in texts.validation.values() for text in parts]),
        names([text for parts in texts.test.values() for text in parts]),
    ]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert not any(name.startswith("story") for name in sides[0])


def test_each_text_is_of_its_kind_and_code_is_nowhere(known: KnownText) -> None:
    texts = pretrained_texts(known, CORPUS, AMOUNTS)
    kinds = {
        name: set(re.findall("(code|prose|story) <", "".join(parts))) for name, parts in texts.test.items()
    }
    assert kinds == {MIX: {"story", "prose"}, KNOWN: {"story"}, PROSE: {"prose"}}
    assert set(re.findall("(code|prose|story) <", "".join(texts.train))) == {"story", "prose"}
    assert tuple(texts.validation) == tuple(texts.test) == TEXTS


def test_seeds_differ_in_what_trains_and_not_in_what_is_measured(known: KnownText) -> None:
    first, second = (pretrained_texts(known, CORPUS, replace(AMOUNTS, seed=seed)) for seed in (0, 1))
    assert first.train != second.train
    assert (first.validation, first.test) == (second.validation, second.test)


def test_as_much_is_taken_as_was_asked_for(known: KnownText) -> None:
    texts = pretrained_texts(known, CORPUS, replace(AMOUNTS, test_chars=500))
    assert sum(map(len, texts.test[KNOWN])) == 500
