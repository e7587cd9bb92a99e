"""What the running sequences do next, as one packed batch. Knows no shards and no models.

Shapes: T packed rows of a lane, R logit rows of the anchor.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from braid_fusion.alignment import Weave
from braid_orchestrator.engine.sessions import Sequence
from braid_rpc.steps import Lane, Segment


@dataclass(frozen=True, slots=True)
class Work:
    """The next ``num_rows`` tokens of a sequence; logits are wanted at ``logit_rows`` of them."""

    sequence: Sequence
    num_rows: int
    logit_rows: range


@dataclass(frozen=True, slots=True)
class LaneBatch:
    """The rows of several sessions in the shards of one tokenizer, without padding.

    ``token_ids`` (T,) int64, the segments in the rows' order; ``seen`` as in `braid_rpc.steps.Lane`. In lanes
    behind the anchor's, the anchor's logit row r goes with row ``logit_rows[reads[r]]``, or where that is -1 with
    the one that its session had last; ``pending[r]`` is the text behind that row (None: no row, or none that says
    how the anchor goes on).
    """

    segments: tuple[Segment, ...]
    token_ids: Tensor
    logit_rows: tuple[int, ...]
    seen: tuple[tuple[int, ...], ...] = ()
    reads: tuple[int, ...] = ()
    pending: tuple[bytes | None, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One batch in all lanes, the anchor's first. Of the anchor's rows ``metric_rows``, all of them logit rows,
    fusion points are to tell what they measure."""

    lanes: tuple[LaneBatch, ...]
    metric_rows: tuple[int, ...] = ()

    @property
    def logit_rows(self) -> tuple[int, ...]:
        """The anchor's rows whose next tokens are wanted."""
        return self.lanes[0].logit_rows

    def sessions_of_logit_rows(self) -> list[str]:
        """The session that each logit row belongs to."""
        owners = [segment.session_id for segment in self.lanes[0].segments for _ in range(segment.num_rows)]
        return [owners[row] for row in self.logit_rows]

    def fusion_lanes(self) -> tuple[Lane, ...]:
        """What the fusion modules need to know of the lanes; nothing where there is only one."""
        if len(self.lanes) == 1:
            return ()
        return tuple(Lane(lane.segments, lane.seen) for lane in self.lanes)


def pack(works: Iterable[Work]) -> PackedBatch:
    """The works' rows one after the other, in all lanes of their sequences."""
    packed = list(works)
    anchor = _pack_anchor(packed)
    metric_rows = _metric_rows(packed)
    woven = packed[0].sequence.woven
    if woven is None:
        return PackedBatch((anchor,), metric_rows)
    parts = [_woven_rows(work) for work in packed]
    behind = [pack_lane(lane, parts) for lane in range(1, 1 + len(woven.weave.lanes))]
    return PackedBatch((replace(anchor, seen=_seen(0, parts)), *behind), metric_rows)


def _metric_rows(works: Many[Work]) -> tuple[int, ...]:
    if not any(work.sequence.wants_row_metrics for work in works):
        return ()
    rows: list[int] = []
    start = 0
    for work in works:
        if work.sequence.wants_row_metrics:
            rows.extend(start + row for row in work.logit_rows)
        start += work.num_rows
    return tuple(rows)


def _pack_anchor(works: Many[Work]) -> LaneBatch:
    segments: list[Segment] = []
    token_ids: list[int] = []
    logit_rows: list[int] = []
    for work in works:
        sequence = work.sequence
        begin = sequence.num_cached
        segments.append(Segment(sequence.session_id, begin, work.num_rows))
        logit_rows.extend(len(token_ids) + row for row in work.logit_rows)
        token_ids.extend(sequence.token_ids[begin : begin + work.num_rows])
    return LaneBatch(tuple(segments), torch.tensor(token_ids, dtype=torch.int64), tuple(logit_rows))


@dataclass(frozen=True, slots=True)
class WovenRows:
    """The anchor's rows ``[begin, end)`` of one session, of which ``logit_rows`` (from ``begin`` on) are wanted."""

    session_id: str
    weave: Weave
    begin: int
    end: int
    logit_rows: Many[int]


def pack_lane(lane: int, parts: Iterable[WovenRows]) -> LaneBatch:
    """The rows of a lane behind the anchor's that go with these of the anchor's."""
    parts = list(parts)
    segments: list[Segment] = []
    token_ids: list[int] = []
    wanted: list[int] = []
    reads: list[int] = []
    pending: list[bytes | None] = []
    for part in parts:
        woven = part.weave.lanes[lane - 1]
        position, count = part.weave.rows(lane, part.begin, part.end)
        start = len(token_ids)
        found: dict[int, int] = {}  # position in the lane: index among the wanted rows
        for row in part.logit_rows:
            at = woven.counts[part.begin + row] - 1
            if at >= position and at not in found:
                found[at] = len(wanted)
                wanted.append(start + at - position)
            reads.append(found.get(at, -1))
            text = woven.pending[part.begin + row]
            pending.append(None if at < 0 or text is None else text.encode())
        if count:
            segments.append(Segment(part.session_id, position, count))
            token_ids.extend(woven.token_ids[position : position + count])
            if position + count - 1 not in found:  # a later step may still go with it
                wanted.append(len(token_ids) - 1)
    return LaneBatch(
        tuple(segments),
        torch.tensor(token_ids, dtype=torch.int64),
        tuple(wanted),
        _seen(lane, parts),
        tuple(reads),
        tuple(pending),
    )


def _seen(lane: int, parts: Iterable[WovenRows]) -> tuple[tuple[int, ...], ...]:
    seen = [part.weave.seen(lane, part.begin, part.end) for part in parts]
    return tuple(tuple(at for one in seen for at in one[other]) for other in range(len(seen[0])))


def _woven_rows(work: Work) -> WovenRows:
    sequence = work.sequence
    if sequence.woven is None:
        raise TypeError("a braided sequence without its text among some that have theirs")
    begin = sequence.num_cached
    return WovenRows(sequence.session_id, sequence.woven.weave, begin, begin + work.num_rows, work.logit_rows)
