"""The fusion service, from a program of one's own: its plan, its weights' versions, its metrics, and its stream.

Shapes: T rows of a batch, R rows of a readout, S shards, D_s a shard's width, N features read off its logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from braid_rpc.calls import DEFAULT_TIMEOUT_S, CallOptions, call_unary
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES, make_channel
from braid_rpc.errors import FrameError
from braid_rpc.fusion_messages import lanes_to_proto
from braid_rpc.handshake import check_protocol
from braid_rpc.shard_messages import segments_to_proto
from braid_rpc.steps import Lane, Segment
from braid_rpc.stream_client import FusionStreamClient
from braid_rpc.tensor import FLOAT_DTYPES, AnyArray, decode_tensor, encode_tensor
from braid_rpc.v1 import fusion_pb2, fusion_pb2_grpc


class Plan(Protocol):
    """What can say itself as JSON: `braid_fusion.plan.BraidPlan`."""

    def to_json(self) -> str:
        """Canonical JSON."""


@dataclass(frozen=True, slots=True)
class FusionCard:
    """What the service has. ``plan_hash`` is empty while no plan is prepared."""

    protocol_version: int
    plan_hash: str
    active_version: str
    loaded_versions: tuple[str, ...]
    num_sessions: int
    num_parameters: int
    frames: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionCard:
    """One version of the weights; ``card_json`` has plan hash, shard hashes and the record of its training."""

    version: str
    card_json: str
    is_loaded: bool
    is_active: bool


@dataclass(frozen=True, slots=True)
class PointMetrics:
    """Running means over the rows that a fusion point has fused, e.g. "weight/code", "router_entropy"."""

    point: str
    strategy: str
    rows: int
    mean: Mapping[str, float]


class FusionClient:
    """The fusion service at ``target``. Connects with its first call; safe for threads.

    ``timeout_s`` bounds each call. Calls that may be repeated are, ``retries`` times, while nobody answers.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = 2,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._max_message_bytes = max_message_bytes
        self._options = CallOptions(target, timeout_s, retries)
        self._channel = make_channel(target, max_message_bytes)
        self._stub = fusion_pb2_grpc.FusionStub(self._channel)

    def prepare(self, plan: Plan | str) -> FusionCard:
        """Have the modules of ``plan`` (or its JSON) built; the same plan again is harmless.

        Raises: ConfigError, ConflictError while sessions are open under another plan, WeightMismatchError,
            CorruptWeightsError, ProtocolVersionError.
        """
        plan_json = plan if isinstance(plan, str) else plan.to_json()
        return self._card(
            call_unary(self._stub.Prepare, fusion_pb2.PrepareRequest(plan_json=plan_json), self._options)
        )

    def describe(self) -> FusionCard:
        """What is prepared, loaded and active. Raises: ProtocolVersionError."""
        return self._card(call_unary(self._stub.Describe, fusion_pb2.DescribeFusionRequest(), self._options))

    def load(self, version: str) -> FusionCard:
        """Read a version from the service's folder. Raises: UnknownVersionError, WeightMismatchError,
        CorruptWeightsError."""
        request = fusion_pb2.LoadVersionRequest(version=version)
        return self._card(call_unary(self._stub.LoadVersion, request, self._options))

    def activate(self, version: str) -> FusionCard:
        """Use a version for sessions opened from now on; running ones keep theirs. Raises: as `load`."""
        request = fusion_pb2.ActivateVersionRequest(version=version)
        return self._card(call_unary(self._stub.ActivateVersion, request, self._options))

    def list_versions(self) -> tuple[VersionCard, ...]:
        """All versions in the service's folder."""
        reply = call_unary(self._stub.ListVersions, fusion_pb2.ListVersionsRequest(), self._options)
        return tuple(VersionCard(v.version, v.card_json, v.loaded, v.active) for v in reply.versions)

    def metrics(self) -> tuple[PointMetrics, ...]:
        """Running means since the start, per fusion point."""
        reply = call_unary(self._stub.GetMetrics, fusion_pb2.GetMetricsRequest(), self._options)
        return tuple(PointMetrics(p.point, p.strategy, p.rows, dict(p.mean)) for p in reply.points)

    def stream(self) -> FusionStream:
        """A stream for fusing; it frees its sessions when it is closed."""
        return FusionStream(self.target, self.timeout_s, self._max_message_bytes)

    def close(self) -> None:
        """Close the connection. Streams have connections of their own and go on."""
        self._channel.close()

    def _card(self, message: fusion_pb2.FusionCard) -> FusionCard:
        check_protocol(self.target, message.protocol_version)
        return FusionCard(
            message.protocol_version,
            message.plan_hash,
            message.active_version,
            tuple(message.loaded_versions),
            message.num_sessions,
            message.num_parameters,
            tuple(message.frames),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FusionStream:
    """Sessions in the fusion service, with numpy arrays. Not for two threads.

    Every method raises what the service raised, UnavailableError if it is gone, DeadlineError if it takes longer
    than the client's timeout.
    """

    def __init__(self, target: str, timeout_s: float, max_message_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_message_bytes
        self._client = FusionStreamClient(
            target, max_message_bytes=max_message_bytes, send_timeout_s=timeout_s
        )

    def open(self, session_ids: Sequence[str], version: str = "") -> str:
        """Open sessions, under ``version`` (empty: the active one); returns the version that they keep."""
        op = fusion_pb2.OpenFusionSessions(session_ids=session_ids, version=version)
        return str(self._call(fusion_pb2.FusionRequest(open=op)).opened.version)

    def fuse(
        self,
        step_id: int,
        point: int,
        segments: Sequence[Segment],
        states: Sequence[AnyArray],
        lanes: Sequence[Lane] = (),
    ) -> list[AnyArray | None]:
        """Exchange states at a point of the plan.

        Args:
            segments: whose rows these are, in order.
            states: one (T, D_s) per shard of the plan.
            lanes: where shards have different tokenizers, the rows of each lane, the anchor's (the same
                ``segments``) first.

        Returns: one (T, D_s) per shard, injected already; None for a shard that receives nothing.
        """
        op = fusion_pb2.Fuse(
            step_id=step_id,
            point=point,
            segments=segments_to_proto(segments),
            states=[encode_tensor(state) for state in states],
            lanes=lanes_to_proto(lanes),
        )
        fused = self._call(fusion_pb2.FusionRequest(fuse=op)).fused.states
        if len(fused) != len(states):
            raise FrameError(f"fused: got {len(fused)} states, expected one per shard: {len(states)}")
        return [
            decode_tensor(
                message, dtypes=FLOAT_DTYPES, shape=state.shape, max_bytes=self._max_bytes, what="fused state"
            )
            if message.shape
            else None
            for message, state in zip(fused, states, strict=True)
        ]

    def read_out(
        self,
        step_id: int,
        session_ids: Sequence[str],
        hidden: Sequence[AnyArray],
        features_RSN: AnyArray | None = None,
    ) -> AnyArray:
        """The shards' mixing weights, as logarithms: (R, S) float32.

        Args:
            session_ids: one per row.
            hidden: one (R, D_s) per shard, the head's input.
            features_RSN: what was read off the shards' logits, where the readout asks for it.
        """
        op = fusion_pb2.ReadOut(
            step_id=step_id,
            session_ids=session_ids,
            hidden=[encode_tensor(states) for states in hidden],
            features=None if features_RSN is None else encode_tensor(features_RSN),
        )
        reply = self._call(fusion_pb2.FusionRequest(read_out=op))
        return decode_tensor(
            reply.weights.log_weights,
            dtypes=("float32",),
            shape=(len(session_ids), len(hidden)),
            max_bytes=self._max_bytes,
            what="log_weights",
        )

    def crop(self, session_id: str, length: int, lane_lengths: Sequence[int] = ()) -> None:
        """Forget cached positions from ``length`` on, in further lanes from theirs."""
        op = fusion_pb2.CropFusion(session_id=session_id, length=length, lane_lengths=lane_lengths)
        self._call(fusion_pb2.FusionRequest(crop=op))

    def close(self, session_ids: Sequence[str]) -> None:
        """Free the sessions' state. Unknown ids are passed over."""
        op = fusion_pb2.CloseFusionSessions(session_ids=session_ids)
        self._call(fusion_pb2.FusionRequest(close=op))

    def end(self) -> None:
        """End the stream, which frees everything that was opened on it."""
        self._client.close()

    def _call(self, request: fusion_pb2.FusionRequest) -> fusion_pb2.FusionReply:
        return self._client.call(request, self._timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
