"""The fusion service, from a program of one's own: its plan, its weights' versions, its metrics, and its stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from braid_rpc.calls import DEFAULT_TIMEOUT_S, CallOptions, call_unary
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES, make_channel
from braid_rpc.fusion_stream import FusionStream
from braid_rpc.handshake import check_protocol
from braid_rpc.publishing import (
    CHUNK_BYTES,
    Progress,
    PublishedVersion,
    publish_header,
    publish_parts,
    publish_timeout_s,
)
from braid_rpc.v1 import fusion_pb2, fusion_pb2_grpc


class Plan(Protocol):
    """What can say itself as JSON: `braid_fusion.plan.BraidPlan`."""

    def to_json(self) -> str:
        """Canonical JSON."""


@dataclass(frozen=True, slots=True)
class FusionCard:
    """What the service has. ``plan_hash`` and ``plan_json`` are empty while no plan is prepared; ``instance_id`` is
    another one with every start; ``max_publish_bytes`` is what the weights of a published version may have, 0 where
    none is taken."""

    protocol_version: int
    plan_hash: str
    active_version: str
    loaded_versions: tuple[str, ...]
    num_sessions: int
    num_parameters: int
    frames: tuple[str, ...] = ()
    instance_id: str = ""
    max_publish_bytes: int = 0
    plan_json: str = ""


@dataclass(frozen=True, slots=True)
class VersionCard:
    """One version of the weights; ``card_json`` has plan hash, shard hashes and the record of its training. One that
    is ``in_memory_only`` is gone when the service ends."""

    version: str
    card_json: str
    is_loaded: bool
    is_active: bool
    in_memory_only: bool = False


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

    def publish(
        self,
        card_json: str,
        data: bytes,
        version: str = "",
        activate: bool = True,
        *,
        timeout_s: float | None = None,
        on_progress: Progress | None = None,
    ) -> PublishedVersion:
        """Have the service take in a new version of the weights, whole or not at all, and use it for new sessions.

        The same version again is harmless, so the call is repeated like any other where nobody answers;
        ``on_progress`` then begins at 0 again.

        Args:
            card_json: what `braid_fusion.packed_weights.pack_stack` makes, or a version's ``card.json``.
            data: a safetensors file's bytes.
            version: its name; empty: one that the same weights get again, and none else.
            activate: False: the service has it, and goes on with the one that is active.
            timeout_s: for all attempts together; None: the client's, and a second more for each megabyte.

        Raises: InvalidRequestError for a name that can't be one, damaged weights, or too many bytes;
            WeightMismatchError if they were made for another braid; ConflictError if another version has this name,
            or no plan is prepared; CapacityError while too many come in; StorageError. After any of them all is as it
            was.
        """
        header = publish_header(card_json, data, version, activate)
        chunk_bytes = min(CHUNK_BYTES, self._max_message_bytes // 2)

        def send(request: fusion_pb2.PublishHeader, **options: Any) -> Any:
            parts = publish_parts(request, data, chunk_bytes, on_progress)
            return self._stub.PublishVersion(parts, **options)

        if timeout_s is None:
            timeout_s = publish_timeout_s(self.timeout_s, len(data))
        reply = call_unary(send, header, self._options, timeout_s=timeout_s)
        card = self._card(reply.card)
        return PublishedVersion(reply.version, card.active_version, reply.in_memory_only)

    def list_versions(self) -> tuple[VersionCard, ...]:
        """All versions: those in the service's folder, and those that it holds in memory."""
        reply = call_unary(self._stub.ListVersions, fusion_pb2.ListVersionsRequest(), self._options)
        return tuple(
            VersionCard(v.version, v.card_json, v.loaded, v.active, v.in_memory_only) for v in reply.versions
        )

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
            message.instance_id,
            message.max_publish_bytes,
            message.plan_json,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
