"""The `Fusion` service over gRPC: messages in, messages out. Knows the wire and no maths."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import torch

from braid_fusion.plan import BraidPlan
from braid_fusion.readout import NUM_LOGIT_FEATURES
from braid_rpc.cards import PROTOCOL_VERSION
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES
from braid_rpc.errors import BraidError, ConfigError, InvalidRequestError, ShapeMismatchError
from braid_rpc.frames import FRAME_FORMATS
from braid_rpc.status import error_to_proto
from braid_rpc.steps import Lane, Segment
from braid_rpc.tensor import DTYPE_NAMES, FLOAT_DTYPES
from braid_rpc.unexpected import unexpected_error
from braid_rpc.v1 import fusion_pb2, fusion_pb2_grpc
from braid_services.frames import decode_frame, put_frame
from braid_services.fusion.backend import FusionBackend, FusionStream
from braid_services.fusion.publishing import Announced
from braid_services.tensors import decode_torch, put_torch

_STATE_FORMATS = (*sorted(FLOAT_DTYPES), "int8")

logger = logging.getLogger(__name__)


class FusionServicer(fusion_pb2_grpc.FusionServicer):  # type: ignore[misc]
    """Serves one backend. Each `Run` stream has a thread and sessions of its own, which end with it."""

    def __init__(self, backend: FusionBackend, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._backend = backend
        self._max_message_bytes = max_message_bytes

    def Prepare(  # noqa: N802
        self, request: fusion_pb2.PrepareRequest, context: grpc.ServicerContext
    ) -> fusion_pb2.FusionCard:
        """Build the modules of a plan."""
        try:
            plan = BraidPlan.from_json(request.plan_json)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"plan_json: not a plan: {type(error).__name__}: {error}") from error
        self._backend.prepare(plan)
        return self._card()

    def Describe(  # noqa: N802
        self, request: fusion_pb2.DescribeFusionRequest, context: grpc.ServicerContext
    ) -> fusion_pb2.FusionCard:
        """What is prepared, loaded and active."""
        return self._card()

    def LoadVersion(  # noqa: N802
        self, request: fusion_pb2.LoadVersionRequest, context: grpc.ServicerContext
    ) -> fusion_pb2.FusionCard:
        """Read a version from disk."""
        self._backend.load(request.version)
        return self._card()

    def ListVersions(  # noqa: N802
        self, request: fusion_pb2.ListVersionsRequest, context: grpc.ServicerContext
    ) -> fusion_pb2.ListVersionsReply:
        """All versions, the oldest first."""
        return fusion_pb2.ListVersionsReply(
            versions=[
                fusion_pb2.VersionCard(
                    version=info.version,
                    card_json=info.card_json,
                    loaded=info.loaded,
                    active=info.active,
                    in_memory_only=info.in_memory_only,
                )
                for info in self._backend.list_versions()
            ]
        )

    def ActivateVersion(  # noqa: N802
        self, request: fusion_pb2.ActivateVersionRequest, context: grpc.ServicerContext
    ) -> fusion_pb2.FusionCard:
        """New sessions get this version."""
        self._backend.activate(request.version)
        return self._card()

    def PublishVersion(  # noqa: N802
        self, request_iterator: Iterator[fusion_pb2.PublishPart], context: grpc.ServicerContext
    ) -> fusion_pb2.PublishReply:
        """Take in a version. A caller that goes away in the middle ends the iterator, and leaves nothing."""
        first = next(request_iterator, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidRequestError("publish: got no header, expected one in the first part")
        header = first.header
        announced = Announced(
            header.version, header.card_json, header.num_bytes, header.sha256, header.activate
        )
        with self._backend.receive(announced) as upload:
            for part in request_iterator:
                if part.WhichOneof("part") != "data":
                    raise InvalidRequestError(
                        "publish: got a part without data, expected bytes of the weights"
                    )
                upload.add(part.data)
            published = upload.finish()
        return fusion_pb2.PublishReply(
            version=published.version, in_memory_only=published.in_memory_only, card=self._card()
        )

    def GetMetrics(  # noqa: N802
        self, request: fusion_pb2.GetMetricsRequest, context: grpc.ServicerContext
    ) -> fusion_pb2.FusionMetrics:
        """Running means per fusion point, then the readout's."""
        return fusion_pb2.FusionMetrics(
            points=[
                fusion_pb2.PointMetrics(
                    point=entry.point, strategy=entry.strategy, rows=entry.rows, mean=entry.mean
                )
                for entry in self._backend.metrics()
            ]
        )

    def Run(  # noqa: N802
        self, request_iterator: Iterator[fusion_pb2.FusionRequest], context: grpc.ServicerContext
    ) -> Iterator[fusion_pb2.FusionReply]:
        """One caller's sessions. A typed error is a reply; the stream goes on after it."""
        stream = self._backend.stream()
        call = _Call(stream, self._backend, self._max_message_bytes)
        try:
            for request in request_iterator:
                yield call.answer(request)
        finally:
            stream.end()

    def _card(self) -> fusion_pb2.FusionCard:
        status = self._backend.status()
        return fusion_pb2.FusionCard(
            protocol_version=PROTOCOL_VERSION,
            plan_hash=status.plan_hash,
            active_version=status.active_version,
            loaded_versions=status.loaded_versions,
            num_sessions=status.num_sessions,
            num_parameters=status.num_parameters,
            frames=FRAME_FORMATS,
            instance_id=self._backend.instance_id,
            max_publish_bytes=status.max_publish_bytes,
            plan_json=status.plan_json,
        )


class _Call:
    """Answers the requests of one stream, in order."""

    def __init__(self, stream: FusionStream, backend: FusionBackend, max_bytes: int) -> None:
        self._stream = stream
        self._backend = backend
        self._max_bytes = max_bytes
        self._handlers: dict[str | None, Callable[[Any, fusion_pb2.FusionReply], float]] = {
            "open": self._open,
            "fuse": self._fuse,
            "read_out": self._read_out,
            "crop": self._crop,
            "close": self._close,
        }

    def answer(self, request: fusion_pb2.FusionRequest) -> fusion_pb2.FusionReply:
        started = time.perf_counter()
        reply = fusion_pb2.FusionReply(id=request.id)
        compute_s = 0.0
        op = request.WhichOneof("op")
        try:
            handler = self._handlers.get(op)
            if handler is None:
                raise InvalidRequestError(f"request {request.id}: got no operation, expected one of the five")
            compute_s = handler(getattr(request, op), reply)
        except BraidError as error:
            logger.info("refused: %s", error, extra=_where(request))
            reply.error.CopyFrom(error_to_proto(error))
        except Exception as error:  # noqa: BLE001 - answered; the stream goes on
            unexpected = unexpected_error(error, logger, "fusion stream", _where(request))
            reply.error.CopyFrom(error_to_proto(unexpected))
        reply.timings.compute_us = round(compute_s * 1e6)
        reply.timings.serialize_us = max(0, round((time.perf_counter() - started - compute_s) * 1e6))
        return reply

    def _open(self, op: fusion_pb2.OpenFusionSessions, reply: fusion_pb2.FusionReply) -> float:
        reply.opened.version = self._stream.open(list(op.session_ids), op.version)
        return 0.0

    def _fuse(self, op: fusion_pb2.Fuse, reply: fusion_pb2.FusionReply) -> float:
        segments, lanes = _segments(op.segments), _lanes(op)
        plan = self._backend.plan
        if lanes and len(lanes) != plan.num_lanes:
            raise InvalidRequestError(f"fuse: got {len(lanes)} lanes, expected {plan.num_lanes}")
        num_rows = sum(segment.num_rows for segment in segments)
        rows = [lanes[lane].num_rows if lanes else num_rows for lane in plan.lane_of]
        states = self._states(op.states, rows)
        frames = _frames(op)
        if frames is not None:  # an update must not be rounded as the narrow states that it is made from
            states = [state.to(torch.promote_types(state.dtype, torch.float32)) for state in states]
        started = time.perf_counter()
        fused = self._stream.fuse(op.step_id, op.point, segments, states, lanes, tuple(op.metric_rows))
        compute_s = time.perf_counter() - started
        for given, state in zip(states, fused.states, strict=True):
            message = reply.fused.states.add()
            if state is None:
                continue
            if frames is None:
                put_torch(state, message)
            else:
                update = state - given
                if bool(update.any()):
                    put_frame(update, frames, message)
        for name, values in fused.row_metrics.items():
            reply.fused.row_metrics[name].values.extend(values)
        return compute_s

    def _read_out(self, op: fusion_pb2.ReadOut, reply: fusion_pb2.FusionReply) -> float:
        num_rows = len(op.session_ids)
        hidden = self._states(op.hidden, [num_rows] * len(self._backend.plan.shards))
        features = None
        if op.HasField("features"):
            shape = (num_rows, len(hidden), NUM_LOGIT_FEATURES)
            features = decode_torch(
                op.features, dtypes=FLOAT_DTYPES, shape=shape, max_bytes=self._max_bytes, what="features"
            )
        started = time.perf_counter()
        log_weights = self._stream.read_out(op.step_id, list(op.session_ids), hidden, features)
        compute_s = time.perf_counter() - started
        put_torch(log_weights, reply.weights.log_weights)
        return compute_s

    def _crop(self, op: fusion_pb2.CropFusion, reply: fusion_pb2.FusionReply) -> float:
        self._stream.crop(op.session_id, op.length, list(op.lane_lengths))
        reply.cropped.SetInParent()
        return 0.0

    def _close(self, op: fusion_pb2.CloseFusionSessions, reply: fusion_pb2.FusionReply) -> float:
        self._stream.close(list(op.session_ids))
        reply.closed.SetInParent()
        if self._backend.is_prepared:
            reply.closed.active_version = self._backend.active_version
        return 0.0

    def _states(self, messages: Any, num_rows: Sequence[int]) -> list[Any]:
        shards = self._backend.plan.shards
        if len(messages) != len(shards):
            raise ShapeMismatchError(f"states: got {len(messages)}, expected one per shard: {len(shards)}")
        return [
            decode_frame(
                message,
                formats=_STATE_FORMATS,
                shape=(rows, shard.width),
                max_bytes=self._max_bytes,
                what=f"state of shard {shard.name!r}",
            )
            for message, shard, rows in zip(messages, shards, num_rows, strict=True)
        ]


def _where(request: fusion_pb2.FusionRequest) -> dict[str, Any]:
    """What a log line is about."""
    op = request.WhichOneof("op")
    found: dict[str, Any] = {"op": op}
    if op == "fuse":
        found |= {"step_id": request.fuse.step_id, "point": request.fuse.point}
        found["sessions"] = [segment.session_id for segment in request.fuse.segments]
    elif op == "read_out":
        found |= {"step_id": request.read_out.step_id, "sessions": list(request.read_out.session_ids)}
    elif op == "open":
        found["sessions"] = list(request.open.session_ids)
    elif op == "crop":
        found["sessions"] = [request.crop.session_id]
    return found


def _segments(messages: Any) -> tuple[Segment, ...]:
    return tuple(Segment(s.session_id, s.position, s.num_rows) for s in messages)


def _lanes(op: fusion_pb2.Fuse) -> tuple[Lane, ...]:
    return tuple(
        Lane(
            _segments(lane.segments if index else op.segments),
            tuple(tuple(seen.positions) for seen in lane.seen),
        )
        for index, lane in enumerate(op.lanes)
    )


def _frames(op: fusion_pb2.Fuse) -> str | None:
    """The format for updates in the reply; None: injected states are wanted as they are."""
    if not op.frames:
        return None
    name = DTYPE_NAMES.get(op.frames)
    if name not in FRAME_FORMATS:
        raise InvalidRequestError(
            f"fuse: frames: got {name or op.frames}, expected one of {', '.join(FRAME_FORMATS)}"
        )
    return name
