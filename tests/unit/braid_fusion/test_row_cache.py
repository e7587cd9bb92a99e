"""A cache of rows equals a plain list of them, whatever is done to it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid_fusion.row_cache import RowCache

operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 150)),
        st.tuples(st.just("crop"), st.integers(0, 200)),
    ),
    max_size=20,
)


@settings(max_examples=50, deadline=None)
@given(operations)
def test_rows_are_what_was_appended_and_not_cropped(steps) -> None:
    cache, plain, drawn = RowCache(), torch.empty(0, 2), 0
    for operation, amount in steps:
        if operation == "crop":
            cache.crop(amount)
            plain = plain[:amount]
        else:
            rows = torch.arange(drawn, drawn + 2 * amount, dtype=torch.float32).view(amount, 2)
            drawn += 2 * amount
            plain = torch.cat([plain, rows])
            assert torch.equal(cache.append("keys", rows), plain)
            assert torch.equal(cache.part(0).append("keys", rows)[-amount:], rows)


def test_crop_reaches_all_names_and_parts() -> None:
    cache = RowCache()
    cache.append("a", torch.ones(5, 1))
    cache.append("b", torch.ones(3, 1))
    cache.part(1).append("a", torch.ones(5, 1))
    cache.crop(2)
    assert cache.append("a", torch.zeros(1, 1)).shape[0] == 3
    assert cache.append("b", torch.zeros(1, 1)).shape[0] == 3
    assert cache.part(1).append("a", torch.zeros(1, 1)).shape[0] == 3
    assert cache.num_bytes() == 3 * 64 * 4


def test_a_copy_goes_on_apart() -> None:
    cache = RowCache()
    cache.append("x", torch.arange(3.0))
    cache.part(1).append("x", torch.arange(2.0))
    cache.lane(1).append("x", torch.arange(4.0))
    twin = cache.copy()
    twin.append("x", torch.tensor([9.0]))
    cache.append("x", torch.tensor([7.0]))
    cache.part(1).crop(0)
    cache.lane(1).crop(1)
    assert twin.append("x", torch.empty(0)).tolist() == [0, 1, 2, 9]
    assert cache.append("x", torch.empty(0)).tolist() == [0, 1, 2, 7]
    assert twin.part(1).append("x", torch.empty(0)).tolist() == [0, 1]
    assert twin.lane(1).append("x", torch.empty(0)).tolist() == [0, 1, 2, 3]
