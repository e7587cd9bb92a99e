"""The rows in a cache: counted, cropped and chosen as the keys beside them are."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from braid_fusion.errors import FusionShapeError, GraftCacheError
from braid_fusion.grafting.cache import GraftRows, cache_in, rows_of


def filled() -> GraftRows:
    """Two sequences: 3 columns of which the first has 1 row, 2 full ones, 1 full one. A row's value is its place."""
    rows = GraftRows(owner=1)
    rows.expect(2)
    real = torch.tensor([[False, False, True], [True, True, True]])
    for count, mask, counts in ((3, real, [1, 3]), (2, None, [2, 2]), (1, None, [1, 1])):
        for index, more in enumerate(counts):
            start = rows.lengths[index]
            rows.sequences[index].part(0).append(
                "x", torch.arange(start, start + more).float()[:, None] + 10 * index
            )
        rows.advance(count, mask, counts)
    return rows


def held(rows: GraftRows) -> list[list[float]]:
    return [
        list(sequence.part(0).append("x", torch.empty(0, 1))[:, 0].tolist()) for sequence in rows.sequences
    ]


@pytest.mark.parametrize(
    ("cropped", "lengths"),
    [(0, [4, 6]), (1, [3, 5]), (3, [1, 3]), (4, [0, 2]), (5, [0, 1]), (6, [0, 0]), (9, [0, 0])],
)
def test_cropping_takes_the_rows_of_the_last_columns(cropped: int, lengths: list[int]) -> None:
    for steps in ([cropped], [1] * min(cropped, 6)):
        rows = filled()
        for step in steps:
            rows.crop(-step)
        assert rows.lengths == lengths
        assert rows.num_positions == max(6 - cropped, 0)
        assert [len(values) for values in held(rows)] == lengths


def test_sequences_chosen_twice_go_on_apart() -> None:
    rows = filled()
    rows.reorder_cache(torch.tensor([1, 1]))
    rows.sequences[0].part(0).append("x", torch.tensor([[99.0]]))
    rows.advance(1, torch.tensor([[True], [False]]), [1, 0])
    assert held(rows) == [[10, 11, 12, 13, 14, 15, 99], [10, 11, 12, 13, 14, 15]]
    rows.batch_select_indices(torch.tensor([False, True]))
    assert (rows.lengths, len(held(rows))) == ([6], 1)
    rows.batch_repeat_interleave(3)
    rows.crop(-4)
    assert rows.lengths == [3, 3, 3]
    rows.reset()
    assert (rows.lengths, rows.num_positions, rows.num_bytes()) == ([], 0, 0)


def test_rows_given_up_go() -> None:
    rows = filled()
    rows.sequences[1].part(0).append("x", torch.zeros(4, 1))
    rows.rewind()
    assert [len(values) for values in held(rows)] == [4, 6]


def test_another_batch_is_refused() -> None:
    with pytest.raises(FusionShapeError, match="got a batch of 3, expected 2"):
        filled().expect(3)


def test_rows_are_found_in_whatever_holds_the_cache() -> None:
    cache = DynamicCache()
    assert cache_in({"past_key_values": cache}) is cache
    assert cache_in((torch.zeros(1), cache)) is cache
    assert cache_in({"past_key_values": None}) is None
    rows = rows_of(cache, owner=1)
    assert (rows.owner, cache.layers) == (1, [])
    keys = torch.zeros(1, 1, 4, 2)
    cache.update(keys, keys, 0)
    rows.expect(1)
    rows.advance(4, None, [4])
    cache.layers.append(rows)
    assert rows_of(cache, owner=1) is rows
    with pytest.raises(GraftCacheError, match="another wrapper"):
        rows_of(cache, owner=2)
    cache.layers[0].crop(-1)
    with pytest.raises(GraftCacheError, match="got 3 positions of keys with grafted rows of 4"):
        rows_of(cache, owner=1)
    with pytest.raises(GraftCacheError, match="4 positions without the rows"):
        other = DynamicCache()
        other.update(keys, keys, 0)
        rows_of(other, owner=1)
