"""From names to the corpora of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from corpora import byte_encoder

from braid_orchestrator.training.data import (
    FoundTexts,
    ReadingOptions,
    TextBatches,
    TrainingTexts,
    find_texts,
    load_texts,
)
from braid_rpc.errors import ContextLengthError, InvalidRequestError, NotFoundError


def find(*texts: Path, held_out: tuple[Path, ...] = (), **options: Any) -> FoundTexts:
    return find_texts([str(path) for path in texts], held_out=[str(path) for path in held_out], **options)


def load(*texts: Path, window: int = 16, **options: Any) -> TrainingTexts:
    return load_texts(find(*texts, **options), byte_encoder(), window=window)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "b.txt").write_text("b" * 50)
    (tmp_path / "data.bin").write_text("d" * 10)
    records = [{"prompt": "1+", "completion": f"{i}"} for i in range(10)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path


def test_texts_come_in_the_order_in_which_they_are_named(folder: Path) -> None:
    loaded = load(folder / "b.txt", folder / "a.txt", folder / "data.bin")
    assert loaded.training.bounds.tolist() == [0, 51, 152, 163]
    assert loaded.held_out is None and loaded.skipped == ()


def test_held_out_texts_are_read_likewise(folder: Path) -> None:
    loaded = load(folder / "a.txt", held_out=(folder / "b.txt",))
    assert loaded.training.num_tokens == 101
    assert loaded.held_out is not None and loaded.held_out.num_tokens == 51


def test_a_share_is_held_out_of_every_text(folder: Path) -> None:
    loaded = load(folder / "a.txt", folder / "b.txt", held_out_share=0.2)
    assert loaded.held_out is not None
    assert loaded.training.bounds.tolist() == [0, 81, 122]
    assert loaded.held_out.bounds.tolist() == [0, 20, 30]


def test_prompts_make_documents_be_kept_whole(folder: Path) -> None:
    loaded = load(folder / "a.txt", folder / "sums.jsonl")
    assert loaded.training.has_prompts
    batches = TextBatches(loaded.training, 16, 4)
    assert batches.packing == "whole"
    batch = next(iter(batches))
    assert batch.num_targets <= batch.token_ids_T.numel() and len(set(batch.lengths)) > 1


def test_what_was_left_out_is_told_by_text(folder: Path) -> None:
    (folder / "c.txt").write_bytes(b"\xff")
    (folder / "e.txt").write_bytes(b"")
    loaded = load(folder, options=ReadingOptions(suffixes=(".txt",)))
    assert [line.partition(";")[0] for line in loaded.skipped] == [
        "1 left out: files that are not text in UTF-8",
        "1 left out: texts without a token",
    ]


def test_progress_is_told_for_every_text(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = find(folder / "a.txt", held_out=(folder / "b.txt",))
    load_texts(found, byte_encoder(), window=16, on_progress=lambda *values: told.append(values))
    assert told == [(str(folder / "a.txt"), 100, 100), (str(folder / "b.txt"), 50, 50)]


def test_names_are_looked_up_without_reading(folder: Path) -> None:
    (folder / "c.txt").write_bytes(b"\xff")
    found = find(folder / "c.txt", held_out=(folder / "a.txt",))
    with pytest.raises(InvalidRequestError, match=r"c.txt: .*UTF-8"):
        load_texts(found, byte_encoder(), window=16)
    with pytest.raises(NotFoundError, match=r"none.txt: no such file"):
        find(folder / "c.txt", held_out=(folder / "none.txt",))


@pytest.mark.parametrize("kept", ["a.txt", "../{}/a.txt", "."])
def test_a_text_is_not_trained_on_and_held_out(folder: Path, kept: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"a.txt: got a text that is to be trained on and held out"):
        load(folder / "a.txt", held_out=(folder / kept.format(folder.name),))


@pytest.mark.parametrize("again", ["a.txt", "../{}/a.txt", "."])
def test_a_text_is_not_taken_twice(folder: Path, again: str) -> None:
    """Else what is held out of one would be trained on in the other."""
    with pytest.raises(
        InvalidRequestError, match=r"a.txt: got a text that is named twice, expected each once"
    ):
        load(folder / "a.txt", folder / again.format(folder.name), held_out_share=0.1)


def test_an_empty_file_is_refused(folder: Path) -> None:
    (folder / "e.txt").write_bytes(b"")
    with pytest.raises(InvalidRequestError, match=r"e.txt: got no text \(1 left out: texts without a token"):
        load(folder / "a.txt", folder / "e.txt")


def test_an_example_longer_than_the_window_is_refused_with_its_line(folder: Path) -> None:
    with pytest.raises(
        ContextLengthError, match=r"sums.jsonl:1: got 4 tokens .* expected at most 3; a longer window"
    ):
        load(folder / "sums.jsonl", window=2)
    assert load(folder / "sums.jsonl", window=3).training.num_documents == 10


def test_texts_must_be_named_and_held_out_texts_in_one_way(folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match="text: got none, expected at least one file"):
        load()
    with pytest.raises(InvalidRequestError, match=r"held out: got both texts \(.*b.txt\) and a share of 0.1"):
        load(folder / "a.txt", held_out=(folder / "b.txt",), held_out_share=0.1)
    with pytest.raises(InvalidRequestError, match=r"held-out share: got 1.5"):
        load(folder / "a.txt", held_out_share=1.5)
