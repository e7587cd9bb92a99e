"""What the running sequences do next, as one packed batch. Knows no shards and no models.

Shapes: T packed rows of a lane, R logit rows of the anchor.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """One batch in all lanes, the anchor's first."""

    lanes: tuple[LaneBatch, ...]

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
    woven = packed[0].sequence.woven
    lanes = [_pack_anchor(packed)]
    if woven is not None:
        lanes = [_with_seen(lanes[0], packed)]
        lanes.extend(_pack_lane(lane, packed) for lane in range(1, 1 + len(woven.weave.lanes)))
    return PackedBatch(tuple(lanes))


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


def _with_seen(lane: LaneBatch, works: Many[Work]) -> LaneBatch:
    return LaneBatch(lane.segments, lane.token_ids, lane.logit_rows, _seen(0, works))


def _pack_lane(lane: int, works: Many[Work]) -> LaneBatch:
    segments: list[Segment] = []
    token_ids: list[int] = []
    wanted: list[int] = []
    reads: list[int] = []
    pending: list[bytes | None] = []
    for work in works:
        sequence = work.sequence
        if sequence.woven is None:
            raise TypeError("a braided sequence without its text among some that have theirs")
        begin = sequence.num_cached
        weave, woven = sequence.woven.weave, sequence.woven.weave.lanes[lane - 1]
        position, count = weave.rows(lane, begin, begin + work.num_rows)
        start = len(token_ids)
        found: dict[int, int] = {}  # position in the lane: index among the wanted rows
        for row in work.logit_rows:
            at = woven.counts[begin + row] - 1
            if at >= position and at not in found:
                found[at] = len(wanted)
                wanted.append(start + at - position)
            reads.append(found.get(at, -1))
            text = woven.pending[begin + row]
            pending.append(None if at < 0 or text is None else text.encode())
        if count:
            segments.append(Segment(sequence.session_id, position, count))
            token_ids.extend(woven.token_ids[position : position + count])
            if position + count - 1 not in found:  # a later step may still go with it
                wanted.append(len(token_ids) - 1)
    return LaneBatch(
        tuple(segments),
        torch.tensor(token_ids, dtype=torch.int64),
        tuple(wanted),
        _seen(lane, works),
        tuple(reads),
        tuple(pending),
    )


def _seen(lane: int, works: Many[Work]) -> tuple[tuple[int, ...], ...]:
    parts = [
        work.sequence.woven.weave.seen(
            lane, work.sequence.num_cached, work.sequence.num_cached + work.num_rows
        )
        for work in works
        if work.sequence.woven is not None
    ]
    return tuple(tuple(at for part in parts for at in part[other]) for other in range(len(parts[0])))
