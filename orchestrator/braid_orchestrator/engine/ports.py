"""What the engine needs of a shard and of the fusion modules, whether in process or remote.

All calls block except the two `send_*`, which return at once so that all shards work at the same time; their
results are fetched by the matching `receive_*`, in the same order. Tensors are torch tensors on the CPU.
Every call raises `BraidError`s only; after `UnavailableError` the object must be reconnected before it is
used again, and its sessions are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from braid_fusion.plan import BraidPlan
from braid_rpc.cards import ChatFormat, ShardCard
from braid_rpc.publishing import PublishedVersion
from braid_rpc.steps import Lane, OpenSession, Segment, SpanResult, SpanStep, Timings


class Shard(Protocol):
    """One base model, stepped span by span."""

    @property
    def name(self) -> str:
        """The shard's name in this braid."""

    @property
    def card(self) -> ShardCard:
        """What the shard says about itself; the free bytes as of the last answer."""

    @property
    def num_replicas(self) -> int:
        """How many there are to run on."""

    @property
    def num_bytes(self) -> int:
        """Of all messages over the present connections, both ways; 0 in process."""

    def open(self, sessions: Sequence[OpenSession]) -> None:
        """Open all or none. Raises: CacheFullError, InvalidRequestError."""

    def send_step(self, step: SpanStep[Tensor]) -> None:
        """Start one span; returns before it is done."""

    def receive_step(self) -> SpanResult[Tensor]:
        """Wait for the span started first. Raises what the shard raised."""

    def crop(self, session_id: str, length: int) -> None:
        """Forget cached positions from ``length`` on."""

    def close(self, session_ids: Sequence[str]) -> None:
        """Free the sessions' caches. Unknown ids are passed over."""

    def tokenizer_json(self) -> str:
        """The shard's tokenizer in the format of the `tokenizers` library."""

    def chat_format(self) -> ChatFormat:
        """How the shard's model expects a conversation; without a template if it expects none."""

    def reconnect(self) -> None:
        """Start afresh without sessions. Raises: UnavailableError."""

    def shutdown(self) -> None:
        """Release everything; the object is not used again."""


@dataclass(frozen=True, slots=True)
class FuseResult:
    """``states[s]`` is (T, D_s), injected already; None for a shard that receives nothing. ``row_metrics`` is what
    the point's strategy tells of the rows asked for, by name, one number per row."""

    states: list[Tensor | None]
    timings: Timings = field(default_factory=Timings)
    row_metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)


class PointMetrics(Protocol):
    """Running means of a fusion point, or of the readout (named ``readout``), over its sampled calls."""

    @property
    def point(self) -> str:
        """Its name."""

    @property
    def rows(self) -> int:
        """All that it has seen."""

    @property
    def mean(self) -> Mapping[str, float]:
        """By metric: ``weight/<shard>``, ``router_entropy``, ``gate/<shard>``, ``update/<shard>``."""


class Fusion(Protocol):
    """The fusion modules and the readout of one braid."""

    @property
    def active_version(self) -> str:
        """The weights version that new sessions get."""

    def prepare(self, plan: BraidPlan) -> None:
        """Build the modules of a plan. Raises: ConfigError, WeightMismatchError, CorruptWeightsError."""

    def open(self, session_ids: Sequence[str], version: str = "") -> str:
        """Open sessions on a version of the weights (empty: the active one); returns the one that they keep."""

    def fuse(
        self,
        step_id: int,
        point: int,
        segments: Sequence[Segment],
        states: Sequence[Tensor],
        lanes: Sequence[Lane] = (),
        metric_rows: Sequence[int] = (),
    ) -> FuseResult:
        """Exchange states at a point: ``states[s]`` is (T, D_s), the rows in the order of ``segments``. Where shards
        have different tokenizers, ``lanes`` tells the rows of each, and T is that of the shard's. ``metric_rows`` are
        the anchor's rows of which it is to tell what it measures."""

    def read_out(
        self, step_id: int, session_ids: Sequence[str], hidden: Sequence[Tensor], features: Tensor
    ) -> Tensor:
        """Mixing weights per row: (R, S) log-probabilities from the heads' inputs (R, D_s) and features (R, S, N)."""

    def close(self, session_ids: Sequence[str]) -> None:
        """Free the sessions' state. Unknown ids are passed over."""

    def activate(self, version: str) -> None:
        """Use another version of the weights for sessions opened from now on."""

    @property
    def max_publish_bytes(self) -> int:
        """What the weights of a published version may have; 0: none is taken in."""

    def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """Take in a new version of the weights (empty: under a name that the same weights get again), whole or not at
        all, and use it for sessions opened from now on. The same again is harmless. Like `metrics` from any thread.

        Raises: InvalidRequestError, WeightMismatchError, ConflictError, CapacityError, StorageError,
            UnavailableError. After any of them all is as it was.
        """

    def metrics(self) -> Sequence[PointMetrics]:
        """By fusion point, then of the readout. Unlike most else, from any thread. Raises: UnavailableError."""

    def reconnect(self) -> None:
        """Start afresh without sessions, on the plan prepared last. Raises: UnavailableError."""

    def shutdown(self) -> None:
        """Release everything; the object is not used again."""
