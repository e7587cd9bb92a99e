"""What a session keeps, and one packed batch whose sessions have different versions of the weights.

Rows are fused with the modules of their own session's version. Letters: T packed rows, R logit rows, S shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from braid_fusion.context import FusionContext
from braid_fusion.point import PointOutput
from braid_fusion.row_cache import RowCache
from braid_fusion.stack import FusionStack
from braid_rpc.errors import ShapeMismatchError
from braid_rpc.steps import Segment


@dataclass(slots=True)
class FusionSession:
    """``length`` positions went through all points; ``caches`` by point, where its strategy keeps rows."""

    version: str
    stack: FusionStack
    length: int = 0
    caches: dict[int, RowCache] = field(default_factory=dict)

    def cache(self, point: int, position: int) -> RowCache:
        """The cache of a point with the rows before ``position``; later ones are of an abandoned batch."""
        cache = self.caches.get(point)
        if cache is None:
            cache = self.caches[point] = RowCache()
        cache.crop(position)
        return cache

    def crop(self, length: int) -> None:
        """Forget positions from ``length`` on."""
        self.length = length
        for cache in self.caches.values():
            cache.crop(length)

    def cache_bytes(self) -> int:
        """Bytes that the caches take."""
        return sum(cache.num_bytes() for cache in list(self.caches.values()))


def fuse_by_stack(
    point: int,
    segments: Sequence[Segment],
    sessions: Sequence[FusionSession],
    states: Sequence[Tensor],
    want_metrics: bool,
) -> PointOutput:
    """`FusionStack.fuse` for each row with its own session's modules; there is at least one segment.

    The metrics are those of the stack that comes last. Raises: FusionShapeError, ShapeMismatchError.
    """
    first = sessions[0].stack
    if all(session.stack is first for session in sessions):
        return first.fuse(point, states, _context(first, point, segments, sessions, want_metrics))
    num_rows = sum(segment.num_rows for segment in segments)
    if any(state.shape[:1] != (num_rows,) for state in states):
        shapes = [tuple(state.shape) for state in states]
        raise ShapeMismatchError(f"fuse: got states {shapes}, expected {num_rows} rows each")
    injected: list[Tensor | None] = [None] * len(states)
    output = PointOutput(injected)
    for stack, members, rows_T in _groups(segments, sessions):
        context = _context(
            stack, point, [segments[i] for i in members], [sessions[i] for i in members], want_metrics
        )
        output = stack.fuse(point, [state.index_select(0, rows_T) for state in states], context)
        for shard, part in enumerate(output.states):
            if part is not None:
                whole = injected[shard]
                if whole is None:
                    injected[shard] = whole = torch.empty_like(states[shard])
                whole.index_copy_(0, rows_T, part)
    return PointOutput(injected, output.metrics)


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
    segments: Sequence[Segment],
    sessions: Sequence[FusionSession],
    want_metrics: bool,
) -> FusionContext:
    caches = None
    if stack.point(point).keeps_rows:
        caches = tuple(
            session.cache(point, segment.position)
            for session, segment in zip(sessions, segments, strict=True)
        )
    return FusionContext(
        tuple([segment.num_rows for segment in segments]),
        tuple([segment.position for segment in segments]),
        caches,
        want_metrics,
    )


def _groups(
    segments: Sequence[Segment], sessions: Sequence[FusionSession]
) -> list[tuple[FusionStack, list[int], Tensor]]:
    """Per stack: which segments are its, and which rows."""
    members: dict[int, list[int]] = {}
    rows: dict[int, list[int]] = {}
    stacks: dict[int, FusionStack] = {}
    start = 0
    for index, (segment, session) in enumerate(zip(segments, sessions, strict=True)):
        key = id(session.stack)
        stacks[key] = session.stack
        members.setdefault(key, []).append(index)
        rows.setdefault(key, []).extend(range(start, start + segment.num_rows))
        start += segment.num_rows
    return [(stack, members[key], torch.tensor(rows[key])) for key, stack in stacks.items()]
