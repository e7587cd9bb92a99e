"""A packed batch split by who owns its sessions, and the answers put together again. Knows no connections.

Shapes: T packed rows, R logit rows, D the shard's width, V its vocabulary; t and r of them are one owner's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from braid_orchestrator.engine.replica_set import Member
from braid_rpc.steps import Segment, SpanResult, SpanStep, Timings


@dataclass(eq=False)
class Share:
    """One owner's part of a batch: its segments; ``rows`` (t,) and ``heads`` (r,) say which rows of the batch, and
    which of its logit rows, these are. None for both: the whole batch is this owner's."""

    owner: Member
    segments: tuple[Segment, ...] = ()
    rows: Tensor | None = None
    heads: Tensor | None = None
    logit_rows: tuple[int, ...] = ()

    def part(self, step: SpanStep[Tensor]) -> SpanStep[Tensor]:
        """What this owner has to run of a step of the batch."""
        if self.rows is None:
            return step
        if step.token_ids is None:
            hidden = None if step.hidden is None else step.hidden[self.rows]
            update = None if step.update is None else step.update[self.rows]
            return replace(step, hidden=hidden, update=update)
        return replace(
            step, segments=self.segments, token_ids=step.token_ids[self.rows], logit_rows=self.logit_rows
        )


@dataclass
class _Gathered:
    segments: list[Segment] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


def split(step: SpanStep[Tensor], owner_of: Callable[[str], Member]) -> list[Share]:
    """The shares of a batch's first step, in the order in which their owners first occur.

    Raises: what ``owner_of`` raises for a session that nobody owns.
    """
    gathered: dict[int, _Gathered] = {}
    owners: dict[int, Member] = {}
    start = 0
    for segment in step.segments:
        owner = owner_of(segment.session_id)
        owners[id(owner)] = owner
        share = gathered.setdefault(id(owner), _Gathered())
        share.segments.append(segment)
        share.rows.extend(range(start, start + segment.num_rows))
        start += segment.num_rows
    if len(owners) == 1:
        [owner] = owners.values()
        return [Share(owner, step.segments)]
    shares = []
    for key, share in gathered.items():
        if not share.rows:
            continue
        place = {row: position for position, row in enumerate(share.rows)}
        heads = [head for head, row in enumerate(step.logit_rows) if row in place]
        shares.append(
            Share(
                owners[key],
                tuple(share.segments),
                torch.tensor(share.rows),
                torch.tensor(heads, dtype=torch.int64),
                tuple(place[step.logit_rows[head]] for head in heads),
            )
        )
    return shares


def merge(
    shares: Sequence[Share], results: Sequence[SpanResult[Tensor]], to_the_head: bool, cache_bytes_free: int
) -> SpanResult[Tensor]:
    """The shares' results as that of the whole batch.

    Args:
        to_the_head: the span ended behind the last layer, so that hidden states are those of the R logit rows.
        cache_bytes_free: of all owners together.
    """
    if len(results) == 1:
        return replace(results[0], cache_bytes_free=cache_bytes_free)
    hidden = _in_order(
        [result.hidden for result in results],
        [share.heads if to_the_head else share.rows for share in shares],
    )
    logits = None
    with_logits = [(s.heads, r.logits) for s, r in zip(shares, results, strict=True) if r.logits is not None]
    if with_logits:
        logits = _in_order([logits for _, logits in with_logits], [heads for heads, _ in with_logits])
    timings = Timings(
        compute_s=max(result.timings.compute_s for result in results),
        wait_s=max(result.timings.wait_s for result in results),
        serialize_s=max(result.timings.serialize_s for result in results),
    )
    return SpanResult(hidden, logits, timings, cache_bytes_free)


def _in_order(parts: Sequence[Tensor], places: Sequence[Tensor | None]) -> Tensor:
    """Rows of several tensors, each to its place in the whole."""
    order = torch.cat([place for place in places if place is not None])
    return torch.cat(list(parts))[torch.argsort(order)]
