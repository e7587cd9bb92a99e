"""The order of batches: the same for a seed, resumable anywhere, and the same for any number of workers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from corpora import corpora, numbered_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from braid_fusion.errors import CheckpointMismatchError
from braid_fusion.training import ResumableSource
from braid_orchestrator.training.data import (
    EvaluationBatches,
    Packing,
    TextBatches,
    TokenCorpus,
    TrainingBatch,
)
from braid_rpc.errors import InvalidRequestError

PACKINGS: tuple[Packing, ...] = ("packed", "whole")


def taken(batches: Any, count: int) -> list[tuple[Any, ...]]:
    """The next batches, in a form that `==` compares."""
    return [content(batch) for batch in itertools.islice(batches, count)]


def content(batch: TrainingBatch) -> tuple[Any, ...]:
    return (
        batch.token_ids_T.tolist(),
        batch.lengths,
        batch.loss_rows_R.tolist(),
        batch.targets_R.tolist(),
    )


def source(seed: int = 0, packing: Packing = "packed", **changed: Any) -> TextBatches:
    options = {"corpus": numbered_corpus([30, 7, 44]), "window": 8, "batch_size": 3} | changed
    return TextBatches(seed=seed, packing=packing, **options)


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_epoch_learns_every_token_once(packing: Packing) -> None:
    corpus = numbered_corpus([30, 7, 44])
    batches = TextBatches(corpus, 8, 1, packing=packing)
    num_windows = 11 if packing == "packed" else round(batches.batches_per_epoch)
    seen = [target for batch in taken(batches, num_windows) for target in batch[3]]
    firsts = {0} if packing == "packed" else {0, 30, 37}
    assert sorted(seen) == sorted(set(range(81)) - firsts)


@pytest.mark.parametrize("packing", PACKINGS)
def test_batches_repeat_with_the_seed_and_differ_between_epochs(packing: Packing) -> None:
    first, again, other = (taken(source(seed, packing), 40) for seed in (1, 1, 2))
    assert first == again != other
    assert first[:4] not in [first[start : start + 4] for start in range(1, 36)]


@pytest.mark.parametrize("packing", PACKINGS)
@settings(max_examples=30)
@given(position=st.integers(0, 25), seed=st.integers(0, 3))
def test_a_source_goes_on_in_the_middle(packing: Packing, position: int, seed: int) -> None:
    straight = source(seed, packing)
    taken(straight, position)
    state = straight.state_dict()
    other = source(seed, packing)
    taken(other, 3)  # wherever it is
    other.load_state_dict(state)
    assert taken(other, 15) == taken(straight, 15)
    assert isinstance(straight, ResumableSource)


def test_a_state_is_not_changed_by_going_on() -> None:
    batches = source()
    taken(batches, 5)
    state = batches.state_dict()
    expected = taken(batches, 30)
    again = source()
    again.load_state_dict(state)
    assert taken(again, 30) == expected


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 7}, "seed: the checkpoint has 0, this run has 7"),
        ({"window": 9}, "window: the checkpoint has 8, this run has 9"),
        ({"batch_size": 2}, "batch_size: the checkpoint has 3, this run has 2"),
        ({"packing": "whole"}, "packing: the checkpoint has 'packed', this run has 'whole'"),
        ({"corpus": numbered_corpus([30, 8, 44])}, "num_tokens: the checkpoint has 81, this run has 82"),
        ({"corpus": numbered_corpus([30, 8, 43])}, "corpus_sha256: the checkpoint has '"),
        ({"corpus": numbered_corpus([30, 7, 44], [0, 1, 0])}, "corpus_sha256: the checkpoint has '"),
    ],
)
def test_a_position_in_other_batches_is_refused(changed: dict[str, Any], named: str) -> None:
    state = source().state_dict()
    with pytest.raises(CheckpointMismatchError, match="checkpoint of another source of data") as refused:
        source(**changed).load_state_dict(state)
    assert named in str(refused.value)


@settings(max_examples=40)
@given(
    corpora(max_length=30),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_workers_together_take_what_one_takes(
    corpus: TokenCorpus, window: int, batch_size: int, num_workers: int, before: int
) -> None:
    window = min(window, corpus.num_tokens - 1)
    whole = TextBatches(corpus, window, batch_size)
    taken(whole, before)
    workers = [whole.share(rank, num_workers) for rank in range(num_workers)]
    by_worker = [taken(worker, 5) for worker in workers]
    rounds = [batch for one_of_each in zip(*by_worker, strict=True) for batch in one_of_each]
    assert rounds == taken(whole, 5 * num_workers)
    assert all(_equal(worker.state_dict(), whole.state_dict()) for worker in workers)


def _equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    orders = left["order"], right["order"]
    return (
        left["source"] == right["source"]
        and orders[0]["taken"] == orders[1]["taken"]
        and torch.equal(orders[0]["epoch_start"], orders[1]["epoch_start"])
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_other_workers_go_on_where_some_stopped(packing: Packing) -> None:
    whole = source(3, packing)
    expected = taken(source(3, packing), 24)
    two = [whole.share(rank, 2) for rank in range(2)]
    for worker in two:
        taken(worker, 6)
    three = [source(3, packing).share(rank, 3) for rank in range(3)]
    for worker in three:
        worker.load_state_dict(two[1].state_dict())
    parts = [taken(worker, 4) for worker in three]
    assert [batch for one_of_each in zip(*parts, strict=True) for batch in one_of_each] == expected[12:]


def test_a_part_does_not_move_the_whole() -> None:
    whole = source()
    taken(whole.share(1, 2), 9)
    assert taken(whole, 3) == taken(source(), 3)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_takes_every_token_once_in_order_each_time(packing: Packing, batch_size: int) -> None:
    batches = EvaluationBatches(numbered_corpus([30, 7, 44]), 8, batch_size, packing)
    first, second = ([content(batch) for batch in batches] for _ in range(2))
    assert first == second and len(first) == len(batches)
    targets = [target for batch in first for target in batch[3]]
    firsts = {0} if packing == "packed" else {0, 30, 37}
    assert targets == sorted(set(range(81)) - firsts)


def test_evaluation_of_some_windows_spreads_them_over_the_text() -> None:
    batches = list(EvaluationBatches(numbered_corpus([81]), 8, 2, max_windows=5))
    assert [batch.token_ids_T[0].item() for batch in batches] == [0, 32, 64]
    assert sum(len(batch.lengths) for batch in batches) == 5
    assert len(list(EvaluationBatches(numbered_corpus([81]), 8, 2, max_windows=50))) == 5


def test_evaluation_takes_a_text_shorter_than_a_window() -> None:
    (batch,) = EvaluationBatches(numbered_corpus([3]), 8, 2)
    assert content(batch) == ([0, 1], (2,), [0, 1], [1, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: source(window=81),
            r"text: got 81 tokens, expected at least 82: a window of 81 and the token",
        ),
        (lambda: source(window=0), "window: got 0 tokens, expected at least 1"),
        (lambda: source(batch_size=0), "batch size: got 0 windows, expected at least 1"),
        (lambda: source().share(2, 2), "rank: got 2 of 2 workers"),
        (
            lambda: source().share(0, 2).share(0, 2),
            "share: got the part of worker 0 of 2, expected the whole",
        ),
        (lambda: EvaluationBatches(numbered_corpus([9]), 4, 1, max_windows=0), "max_windows: got 0 windows"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        make()


def test_a_text_of_just_one_window_is_enough() -> None:
    batches = source(corpus=numbered_corpus([9]))
    targets = [target for batch in taken(batches, 20) for target in batch[3]]
    assert set(targets) == set(range(1, 9))
