"""One caller's sessions in the fusion modules: which step may follow which, and what each session keeps.

Knows neither the wire nor the maths. Letters: T packed rows, R logit rows, S shards, D a shard's width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from braid_fusion.errors import FusionError
from braid_fusion.point import entropy
from braid_rpc.errors import (
    ConflictError,
    InvalidRequestError,
    ShapeMismatchError,
    StepOrderError,
    UnknownSessionError,
)
from braid_rpc.steps import Lane, Segment, Timings
from braid_services.fusion.lanes import check_lanes
from braid_services.fusion.metrics import READOUT_PLACE
from braid_services.fusion.sessions import FusionSession, fuse_by_stack, read_out_by_stack
from braid_services.fusion.translation import translated

if TYPE_CHECKING:
    from braid_services.fusion.backend import FusionBackend


@dataclass(frozen=True, slots=True)
class FusedStates:
    """``states[s]`` is (T, D_s), injected already; None for a shard that receives nothing. ``row_metrics`` is what
    the point's strategy tells of the rows asked for, by name, one number per row."""

    states: list[Tensor | None]
    timings: Timings = field(default_factory=Timings)
    row_metrics: dict[str, list[float]] = field(default_factory=dict)


@dataclass(slots=True)
class _Batch:
    """The batch under way: rows that went through the points before ``next_point``."""

    step_id: int
    lanes: tuple[Lane, ...]
    next_point: int = 0


class FusionStream:
    """Sessions of one caller; not for two threads at once.

    A batch begins at point 0 and goes through all points under one step id, with the same segments; its rows
    count from the last point on. A new batch abandons one that is under way, without trace. A repeat of the
    latest call at a point gives the same result again. After an error nothing has changed.
    """

    def __init__(self, backend: FusionBackend) -> None:
        """Streams are made by `FusionBackend.stream`."""
        self._backend = backend
        self._sessions: dict[str, FusionSession] = {}
        self._batch: _Batch | None = None
        self._last_step_id = -1
        self._latest: tuple[tuple[int, int, tuple[Lane, ...], tuple[int, ...]], FusedStates] | None = None

    @property
    def num_sessions(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    def cache_bytes(self) -> int:
        """Bytes that the sessions' caches take."""
        return sum(session.cache_bytes() for session in list(self._sessions.values()))

    def open(self, session_ids: Sequence[str], version: str = "") -> str:
        """Open all or none, on a version of the weights (empty: the active one); returns the one they keep.

        Raises: ConflictError if one is open already, InvalidRequestError for an empty or repeated id,
            UnknownVersionError, WeightMismatchError, CorruptWeightsError.
        """
        if len(set(session_ids)) != len(session_ids) or not all(session_ids):
            raise InvalidRequestError(
                f"open: got {list(session_ids)}, expected different ids that are not empty"
            )
        for session_id in session_ids:
            if session_id in self._sessions:
                raise ConflictError(f"open: session {session_id!r} is open already")
        with self._backend.lock:  # the plan stays while the sessions come to be
            versions = self._backend.versions
            version = version or versions.active
            stack = versions.stack(version)
            for session_id in session_ids:
                self._sessions[session_id] = FusionSession(version, stack, [0] * versions.plan.num_lanes)
        return version

    def fuse(
        self,
        step_id: int,
        point: int,
        segments: Sequence[Segment],
        states: Sequence[Tensor],
        lanes: Sequence[Lane] = (),
        metric_rows: Sequence[int] = (),
    ) -> FusedStates:
        """Exchange states at a point: one (T, D_s) per shard, the rows in the order of the segments.

        Args:
            lanes: where shards have different tokenizers, the rows of each lane, the anchor's (which has the same
                ``segments``) first; T is then that of the shard's lane.
            metric_rows: the anchor's rows of which it is to tell what it measures.

        Raises: StepOrderError, UnknownSessionError, ShapeMismatchError, InvalidRequestError.
        """
        started = time.perf_counter()
        lanes = tuple(lanes) or (Lane(tuple(segments), ()),)
        call = (step_id, point, lanes, tuple(metric_rows))
        if self._latest is not None and self._latest[0] == call:
            return self._latest[1]
        batch = self._begin(step_id, lanes) if point == 0 else self._continue(step_id, point, lanes)
        sessions = [self._session(segment.session_id) for segment in lanes[0].segments]
        num_rows = lanes[0].num_rows
        if metric_rows and not 0 <= min(metric_rows) <= max(metric_rows) < num_rows:
            raise InvalidRequestError(
                f"fuse: metric_rows: got rows {min(metric_rows)} to {max(metric_rows)}, "
                f"expected 0 to {num_rows - 1}"
            )
        metrics = self._backend.running_metrics
        name = self._backend.plan.points[point].name
        want_metrics = metrics.count(name, num_rows)
        try:
            with torch.inference_mode():
                output = fuse_by_stack(point, lanes, sessions, states, want_metrics or bool(metric_rows))
                if want_metrics and output.metrics:
                    metrics.add(name, output.metrics, num_rows)
                row_metrics = _of_rows(output.row_metrics, metric_rows)
        except FusionError as error:
            raise translated(error) from error
        batch.next_point = point + 1
        self._batch, self._last_step_id = batch, step_id
        if batch.next_point == len(self._backend.plan.points):
            for index, lane in enumerate(lanes):
                for segment in lane.segments:
                    self._sessions[segment.session_id].lengths[index] = segment.position + segment.num_rows
        result = FusedStates(output.states, Timings(compute_s=time.perf_counter() - started), row_metrics)
        self._latest = (call, result)
        return result

    def read_out(
        self,
        step_id: int,
        session_ids: Sequence[str],
        hidden: Sequence[Tensor],
        features: Tensor | None = None,
    ) -> Tensor:
        """Logarithms of the mixing weights, (R, S) float32, for rows of these sessions, from the heads' inputs,
        one (R, D_s) per shard, and the features (R, S, N). It depends on no other step.

        Raises: UnknownSessionError, ShapeMismatchError.
        """
        if not session_ids:
            raise InvalidRequestError("read_out: got no rows, expected at least one")
        if not hidden or any(state.shape[:1] != (len(session_ids),) for state in hidden):
            shapes = [tuple(state.shape) for state in hidden]
            raise ShapeMismatchError(
                f"read_out: got states {shapes}, expected one per shard with {len(session_ids)} rows"
            )
        stacks = [self._session(session_id).stack for session_id in session_ids]
        metrics = self._backend.running_metrics
        want_metrics = metrics.count(READOUT_PLACE, len(stacks))
        try:
            with torch.inference_mode():
                log_weights_RS = read_out_by_stack(stacks, hidden, features)
                if want_metrics:
                    metrics.add(READOUT_PLACE, self._readout_metrics(log_weights_RS.exp()), len(stacks))
        except FusionError as error:
            raise translated(error) from error
        return log_weights_RS

    def crop(self, session_id: str, length: int, lane_lengths: Sequence[int] = ()) -> None:
        """Forget positions from ``length`` on, and the batch under way if the session is in it.

        Args:
            lane_lengths: those of the lanes behind the anchor's, where there are any.

        Raises: UnknownSessionError; InvalidRequestError if the session is shorter.
        """
        session = self._session(session_id)
        lengths = [length, *lane_lengths]
        if len(lengths) != len(session.lengths):
            raise InvalidRequestError(
                f"crop {session_id!r}: got lengths for {len(lengths)} lanes, expected {len(session.lengths)}"
            )
        for got, held in zip(lengths, session.lengths, strict=True):
            if not 0 <= got <= held:
                raise InvalidRequestError(f"crop {session_id!r}: got length {got}, expected 0 to {held}")
        session.crop(lengths)
        self._abandon({session_id})

    def close(self, session_ids: Sequence[str]) -> None:
        """Free what the sessions keep. Unknown ids are passed over."""
        for session_id in session_ids:
            self._sessions.pop(session_id, None)
        self._abandon(set(session_ids))

    def end(self) -> None:
        """Close all sessions. The stream may be used again."""
        self._sessions.clear()
        self._batch = self._latest = None

    def _abandon(self, session_ids: set[str]) -> None:
        self._latest = None
        if self._batch is not None and any(
            s.session_id in session_ids for s in self._batch.lanes[0].segments
        ):
            self._batch = None

    def _session(self, session_id: str) -> FusionSession:
        session = self._sessions.get(session_id)
        if session is None:
            raise UnknownSessionError(f"fusion: no session {session_id!r}: never opened here, or closed")
        return session

    def _begin(self, step_id: int, lanes: tuple[Lane, ...]) -> _Batch:
        if step_id <= self._last_step_id:
            raise StepOrderError(
                f"fuse: got step {step_id} at point 0, expected one after {self._last_step_id}"
            )
        if not self._backend.plan.points:
            raise InvalidRequestError("fuse: got point 0, but the plan has no fusion points")
        if not lanes[0].segments:
            raise InvalidRequestError("fuse: got no segments, expected at least one")
        check_lanes(
            lanes,
            self._backend.plan.num_lanes,
            {s.session_id: self._session(s.session_id).lengths for s in lanes[0].segments},
        )
        return _Batch(step_id, lanes)

    def _continue(self, step_id: int, point: int, lanes: tuple[Lane, ...]) -> _Batch:
        num_points = len(self._backend.plan.points)
        if not 0 <= point < num_points:
            raise InvalidRequestError(f"fuse: got point {point}, expected one below {num_points}")
        batch = self._batch
        if batch is None or batch.step_id != step_id or batch.next_point != point:
            expected = "point 0 of a new step"
            if batch is not None and batch.next_point < num_points:
                expected = f"point {batch.next_point} of step {batch.step_id}, or a new step"
            raise StepOrderError(f"fuse: got point {point} of step {step_id}, expected {expected}")
        if batch.lanes != lanes:
            raise StepOrderError(
                f"fuse: got other segments at point {point} than at point 0 of step {step_id}"
            )
        return batch

    def _readout_metrics(self, weights_RS: Tensor) -> dict[str, Tensor]:
        mean_S = weights_RS.mean(0)
        names = [f"weight/{shard.name}" for shard in self._backend.plan.shards]
        return {**dict(zip(names, mean_S, strict=True)), "weight_entropy": entropy(weights_RS).mean()}


def _of_rows(row_metrics: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, list[float]]:
    if not rows:
        return {}
    wanted_R = torch.tensor(rows)
    return {
        name: values_T.index_select(0, wanted_R.to(values_T.device)).float().tolist()
        for name, values_T in row_metrics.items()
    }
