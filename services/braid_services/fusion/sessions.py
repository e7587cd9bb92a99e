"""What a session keeps, and one packed batch whose sessions have different versions of the weights.

Rows are fused with the modules of their own session's version. Letters: T packed rows, R logit rows, S shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from braid_fusion.alignment.rows import Alignment, LaneRows
from braid_fusion.context import FusionContext
from braid_fusion.point import PointOutput
from braid_fusion.row_cache import RowCache
from braid_fusion.stack import FusionStack
from braid_rpc.errors import ShapeMismatchError
from braid_rpc.steps import Lane, Segment


@dataclass(slots=True)
class FusionSession:
    """``lengths`` positions, one per lane, went through all points; ``caches`` by point, where rows are kept."""

    version: str
    stack: FusionStack
    lengths: list[int]
    caches: dict[int, RowCache] = field(default_factory=dict)

    def cache(self, point: int, positions: Sequence[int]) -> RowCache:
        """The cache of a point with the rows before ``positions``, one per lane; later ones are of an abandoned
        batch."""
        cache = self.caches.get(point)
        if cache is None:
            cache = self.caches[point] = RowCache()
        cache.crop_lanes(positions)
        return cache

    def crop(self, lengths: Sequence[int]) -> None:
        """Forget in each lane the positions from its length on."""
        self.lengths = list(lengths)
        for cache in self.caches.values():
            cache.crop_lanes(lengths)

    def cache_bytes(self) -> int:
        """Bytes that the caches take."""
        return sum(cache.num_bytes() for cache in list(self.caches.values()))


def fuse_by_stack(
    point: int,
    lanes: Sequence[Lane],
    sessions: Sequence[FusionSession],
    states: Sequence[Tensor],
    want_metrics: bool,
) -> PointOutput:
    """`FusionStack.fuse` for each row with its own session's modules; ``lanes[0]`` has a segment per session.

    The metrics are those of the stack that comes last. Raises: FusionShapeError, ShapeMismatchError.
    """
    first = sessions[0].stack
    if all(session.stack is first for session in sessions):
        return first.fuse(point, states, _context(first, point, lanes, sessions, want_metrics))
    lane_of = first.plan.lane_of
    if any(state.shape[:1] != (lanes[lane].num_rows,) for state, lane in zip(states, lane_of, strict=True)):
        shapes, rows = [tuple(state.shape) for state in states], [lanes[lane].num_rows for lane in lane_of]
        raise ShapeMismatchError(f"fuse: got states {shapes}, expected {rows} rows")
    injected: list[Tensor | None] = [None] * len(states)
    output = PointOutput(injected)
    row_metrics: dict[str, Tensor] = {}
    for stack in {id(session.stack): session.stack for session in sessions}.values():
        members = {
            s.session_id for s, one in zip(lanes[0].segments, sessions, strict=True) if one.stack is stack
        }
        parts = [_part(lane, members) for lane in lanes]
        context = _context(
            stack, point, [lane for lane, _ in parts], [s for s in sessions if s.stack is stack], want_metrics
        )
        rows_T = [parts[lane][1] for lane in lane_of]
        output = stack.fuse(
            point, [state.index_select(0, own) for state, own in zip(states, rows_T, strict=True)], context
        )
        for shard, part in enumerate(output.states):
            if part is not None:
                whole = injected[shard]
                if whole is None:
                    injected[shard] = whole = torch.empty_like(states[shard])
                whole.index_copy_(0, rows_T[shard], part)
        for name, part in output.row_metrics.items():
            # All versions are of one plan, so all have the same names: none of these rows stays as it is here.
            whole = row_metrics.setdefault(name, part.new_full((lanes[0].num_rows,), torch.nan))
            whole.index_copy_(0, parts[0][1], part)
    return PointOutput(injected, output.metrics, row_metrics)


def read_out_by_stack(
    stacks: Sequence[FusionStack], hidden: Sequence[Tensor], features: Tensor | None
) -> Tensor:
    """`FusionStack.read_out` for each row with its own modules: (R, S) float32; there is at least one row.

    Raises: FusionShapeError.
    """
    first = stacks[0]
    if all(stack is first for stack in stacks):
        return first.read_out(hidden, features).float()
    log_weights_RS = torch.empty(len(stacks), len(hidden))
    for stack in {id(stack): stack for stack in stacks}.values():
        rows_R = torch.tensor([row for row, own in enumerate(stacks) if own is stack])
        part = stack.read_out(
            [state.index_select(0, rows_R) for state in hidden],
            None if features is None else features.index_select(0, rows_R),
        )
        log_weights_RS.index_copy_(0, rows_R, part.float())
    return log_weights_RS


def _context(
    stack: FusionStack,
    point: int,
    lanes: Sequence[Lane],
    sessions: Sequence[FusionSession],
    want_metrics: bool,
) -> FusionContext:
    rows = [
        _rows(lane, [s.session_id for s in lanes[0].segments], k, sessions) for k, lane in enumerate(lanes)
    ]
    caches = None
    if len(lanes) > 1 or stack.point(point).keeps_rows:
        caches = tuple(
            session.cache(point, [lane.positions[index] for lane in rows])
            for index, session in enumerate(sessions)
        )
    return FusionContext(
        rows[0].row_counts,
        rows[0].positions,
        caches,
        want_metrics,
        Alignment(stack.plan.lane_of, tuple(rows)) if len(lanes) > 1 else None,
    )


def _rows(lane: Lane, session_ids: list[str], index: int, sessions: Sequence[FusionSession]) -> LaneRows:
    """A lane's rows by session, with none for those that have no segment."""
    if index == 0:
        return LaneRows(
            tuple([segment.num_rows for segment in lane.segments]),
            tuple([segment.position for segment in lane.segments]),
            lane.seen,
        )
    segments = {segment.session_id: segment for segment in lane.segments}
    found = [segments.get(session_id) for session_id in session_ids]
    return LaneRows(
        tuple(segment.num_rows if segment else 0 for segment in found),
        tuple(
            segment.position if segment else session.lengths[index]
            for segment, session in zip(found, sessions, strict=True)
        ),
        lane.seen,
    )


def _part(lane: Lane, session_ids: set[str]) -> tuple[Lane, Tensor]:
    """The rows of some sessions, and where they stand among all."""
    segments: list[Segment] = []
    rows: list[int] = []
    start = 0
    for segment in lane.segments:
        if segment.session_id in session_ids:
            segments.append(segment)
            rows.extend(range(start, start + segment.num_rows))
        start += segment.num_rows
    seen = tuple(tuple(positions[row] for row in rows) for positions in lane.seen)
    return Lane(tuple(segments), seen), torch.tensor(rows, dtype=torch.int64)
