"""The data's order: each item once per epoch, and from any place on the same order again."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from braid_fusion.errors import CheckpointMismatchError, TrainingDataError
from braid_fusion.training import EpochOrder, ItemBatches, ResumableSource, TokenWindows


def order(size: int = 7, seed: int = 3) -> EpochOrder:
    return EpochOrder(lambda generator: torch.randperm(size, generator=generator), seed)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(0, 7), st.integers(1, 30))
def test_an_order_goes_on_from_anywhere(counts: list[int], cut: int, used: int) -> None:
    straight, first, second = order(), order(), order(seed=8)
    second.take(used)  # whatever it did before
    taken = [straight.take(count).tolist() for count in counts]
    for count in counts[:cut]:
        first.take(count)
    second.load_state_dict(first.state_dict())
    assert [second.take(count).tolist() for count in counts[cut:]] == taken[cut:]


def test_each_epoch_holds_each_number_once_in_an_order_of_its_own() -> None:
    numbers = order(size=30).take(90).view(3, 30)
    assert all(sorted(epoch) == list(range(30)) for epoch in numbers.tolist())
    assert len({tuple(epoch) for epoch in numbers.tolist()}) == 3


def items(size: int = 5, **options: Any) -> ItemBatches[str, str]:
    given = {"batch_size": 2, "collate": "".join, **options}
    return ItemBatches("abcdefgh"[:size], **given)  # type: ignore[arg-type]


def windows(**options: Any) -> TokenWindows:
    return TokenWindows(**{"tokens": torch.arange(50), "length": 6, "batch_size": 3, "seed": 1, **options})


@pytest.mark.parametrize("make", [items, windows])
@pytest.mark.parametrize("used", [0, 1, 2, 3, 5, 8])
def test_a_source_goes_on_from_anywhere(make: Any, used: int) -> None:
    straight, resumed = make(), make()
    assert isinstance(straight, ResumableSource)
    for _ in itertools.islice(straight, used):
        pass
    resumed.load_state_dict(straight.state_dict())
    for one, other in itertools.islice(zip(straight, resumed, strict=False), 9):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_items_come_once_per_epoch() -> None:
    text = "".join(itertools.islice(items(), 5))
    assert sorted(text[:5]) == sorted(text[5:]) == list("abcde")
    assert "".join(itertools.islice(items(seed=0), 5)) == text
    assert "".join(itertools.islice(items(seed=1), 5)) != text


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (items, {"size": 4}, "num_items: the checkpoint has 5, this run has 4"),
        (items, {"batch_size": 3}, "batch_size: the checkpoint has 2, this run has 3"),
        (items, {"identity": {"hash": "x"}}, "hash: the checkpoint has 'nothing', this run has 'x'"),
        (windows, {"length": 7}, "length: the checkpoint has 6, this run has 7"),
        (windows, {"tokens": torch.arange(1, 51)}, "tokens_sha256"),
    ],
)
def test_a_place_in_other_data_is_refused(make: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointMismatchError) as refused:
        make(**change).load_state_dict(make().state_dict())
    assert message in str(refused.value)


def test_no_items_are_refused() -> None:
    with pytest.raises(TrainingDataError, match="got 0 items"):
        items(0)
