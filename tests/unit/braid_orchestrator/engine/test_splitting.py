"""A batch that is split by owners and put together again is the batch."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from braid_orchestrator.engine.splitting import merge, split
from braid_rpc.steps import Segment, SpanResult, SpanStep, Timings

OWNERS: list[Any] = ["a", "b", "c"]


@st.composite
def batches(draw: st.DrawFn) -> tuple[SpanStep[torch.Tensor], list[int]]:
    rows = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any))
    owners = draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    total = sum(rows)
    heads = tuple(sorted(draw(st.sets(st.integers(0, total - 1), max_size=total))))
    segments = tuple(Segment(str(i), 0, n) for i, n in enumerate(rows))
    return SpanStep(1, 0, 2, False, segments, torch.arange(total) + 100, heads), owners


@given(batches(), st.booleans())
def test_rows_and_heads_come_back_in_their_order(
    batch: tuple[SpanStep[torch.Tensor], list[int]], to_the_head: bool
) -> None:
    step, owners = batch
    assert step.token_ids is not None
    shares = split(step, lambda session: OWNERS[owners[int(session)]])
    results = []
    for share in shares:
        part = share.part(step)
        assert part.token_ids is not None
        assert sum(segment.num_rows for segment in part.segments) == len(part.token_ids)
        assert {OWNERS[owners[int(segment.session_id)]] for segment in part.segments} == {share.owner}
        second = share.part(SpanStep(1, 2, 4, True, hidden=2 * step.token_ids[:, None]))
        assert torch.equal(second.hidden[:, 0], 2 * part.token_ids)  # type: ignore[index]
        heads = part.token_ids[list(part.logit_rows)][:, None]
        hidden = heads if to_the_head else part.token_ids[:, None]
        results.append(SpanResult(hidden, heads if to_the_head else None, Timings(compute_s=len(results))))
    merged = merge(shares, results, to_the_head, 7)
    expected = step.token_ids[list(step.logit_rows)] if to_the_head else step.token_ids
    assert torch.equal(merged.hidden[:, 0], expected)
    assert merged.logits is None or torch.equal(merged.logits[:, 0], expected)
    assert (merged.logits is None) == (not to_the_head)
    assert merged.timings.compute_s == len(results) - 1
    assert merged.cache_bytes_free == 7
