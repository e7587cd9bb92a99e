"""The fusion modules of one braid, with their versions and metrics. Knows torch and no network."""

from __future__ import annotations

import hashlib
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_rpc.errors import CapacityError, ConflictError
from braid_rpc.publishing import PublishedVersion
from braid_services.fusion.metrics import READOUT_PLACE, PointMetrics, RunningMetrics
from braid_services.fusion.publishing import Announced, Upload
from braid_services.fusion.stream import FusionStream
from braid_services.fusion.versions import VersionInfo, Versions

__all__ = ["FusionBackend", "FusionStatus", "FusionStream"]

MAX_UPLOADS = 4
"""Versions that come in at the same time: each is in memory until it is whole."""


@dataclass(frozen=True, slots=True)
class FusionStatus:
    """What a backend says about itself; ``plan_hash`` and ``plan_json`` are empty until it is prepared."""

    plan_hash: str
    plan_json: str
    active_version: str
    loaded_versions: tuple[str, ...]
    num_sessions: int
    num_parameters: int
    cache_bytes: int
    max_publish_bytes: int


class FusionBackend:
    """Serves one plan at a time, to any number of streams in threads of their own.

    ``weights_dir`` is a folder of versions as `braid_fusion.weights.save_stack` writes them (None: the
    modules are untrained, and what is published is in memory only), ``version`` the one to begin with (None: the
    newest). The weights of a published version may have ``max_publish_bytes`` (None: what the plan's tensors need,
    twice over; 0: none is taken in).
    """

    def __init__(
        self,
        weights_dir: Path | str | None = None,
        version: str | None = None,
        max_publish_bytes: int | None = None,
    ) -> None:
        self.instance_id = uuid.uuid4().hex
        self._folder = None if weights_dir is None else Path(weights_dir)
        self._first_version = version or None
        self._max_publish_bytes = max_publish_bytes
        self._uploads = threading.BoundedSemaphore(MAX_UPLOADS)
        self._versions: Versions | None = None
        self._metrics = RunningMetrics()
        self._streams: weakref.WeakSet[FusionStream] = weakref.WeakSet()
        self.lock = threading.RLock()
        """Held while the plan or the set of streams changes."""

    @classmethod
    def from_stack(
        cls, stack: FusionStack, version: str = "in-process", weights_dir: Path | str | None = None
    ) -> FusionBackend:
        """A backend over modules that exist already, prepared for their plan.

        They are used as they are: a change of their parameters shows in the very next step.
        """
        backend = cls(weights_dir)
        backend._versions = Versions.of(stack, version, backend._folder)
        return backend

    def prepare(self, plan: BraidPlan) -> None:
        """Build the modules of a plan. The plan that is there already is left as it is.

        Raises: ConflictError for another plan while sessions are open; ConfigError, UnknownVersionError,
            WeightMismatchError, CorruptWeightsError, after which the plan from before still stands.
        """
        with self.lock:
            if self._versions is not None:
                held, asked = self._versions.plan.hash(), plan.hash()
                if held == asked:
                    return
                if self.num_sessions:
                    raise ConflictError(
                        f"prepare: got plan {asked} while {self.num_sessions} sessions of plan {held} are open"
                    )
            self._versions = Versions(plan, self._folder, self._first_version)
            self._metrics = RunningMetrics()

    @property
    def versions(self) -> Versions:
        """Raises: ConflictError before `prepare`."""
        if self._versions is None:
            raise ConflictError("fusion: no plan is prepared yet; call prepare first")
        return self._versions

    @property
    def plan(self) -> BraidPlan:
        """The plan served. Raises: ConflictError before `prepare`."""
        return self.versions.plan

    @property
    def is_prepared(self) -> bool:
        """Whether there is a plan."""
        return self._versions is not None

    @property
    def active_version(self) -> str:
        """The version that new sessions get. Raises: ConflictError before `prepare`."""
        return self.versions.active

    @property
    def num_sessions(self) -> int:
        """Open sessions of all streams."""
        with self.lock:
            return sum(stream.num_sessions for stream in self._streams)

    def stream(self) -> FusionStream:
        """One caller's view. Its sessions end with it."""
        stream = FusionStream(self)
        with self.lock:
            self._streams.add(stream)
        return stream

    def load(self, version: str) -> None:
        """Read a version from disk, again if it is loaded. Raises: as `prepare`."""
        self.versions.load(version)

    def activate(self, version: str) -> None:
        """Sessions from now on get this version; running ones keep theirs. Raises: as `prepare`."""
        self.versions.activate(version)

    @property
    def max_publish_bytes(self) -> int:
        """What the weights of a published version may have. Raises: ConflictError before `prepare`."""
        given = self._max_publish_bytes
        return self.versions.max_packed_bytes if given is None else given

    @contextmanager
    def receive(self, announced: Announced) -> Iterator[Upload]:
        """A version on its way in; nothing of it is there unless its `finish` was reached.

        Raises: CapacityError while too many come in; ConflictError before `prepare`; as `Upload`.
        """
        if not self._uploads.acquire(blocking=False):
            raise CapacityError(
                f"publish: {MAX_UPLOADS} versions are coming in, expected fewer", retry_after_s=1.0
            )
        try:
            yield Upload(announced, lambda: self.versions, self.max_publish_bytes)
        finally:
            self._uploads.release()

    def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """Take in a new version of the weights, whole or not at all; the same version again is harmless.

        Args:
            card_json, data: as `braid_fusion.packed_weights.pack_stack` makes them.
            version: its name; empty: one that the same weights get again, and none else.
            activate: sessions from then on get it; running ones keep theirs.

        Raises: as `receive`, and as `Upload.finish`.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        with self.receive(Announced(version, card_json, len(data), sha256, activate)) as upload:
            upload.add(data)
            return upload.finish()

    def list_versions(self) -> list[VersionInfo]:
        """All versions, the oldest first. Raises: ConflictError before `prepare`."""
        return self.versions.list()

    def status(self) -> FusionStatus:
        """As it is now."""
        versions = self._versions
        if versions is None:
            return FusionStatus("", "", "", (), 0, 0, 0, 0)
        with self.lock:
            streams = list(self._streams)
        return FusionStatus(
            plan_hash=versions.plan.hash(),
            plan_json=versions.plan.to_json(),
            active_version=versions.active,
            loaded_versions=versions.loaded,
            num_sessions=sum(stream.num_sessions for stream in streams),
            num_parameters=versions.stack(versions.active).num_parameters(),
            cache_bytes=sum(stream.cache_bytes() for stream in streams),
            max_publish_bytes=self.max_publish_bytes,
        )

    @property
    def running_metrics(self) -> RunningMetrics:
        """Where streams report to."""
        return self._metrics

    def metrics(self) -> list[PointMetrics]:
        """One entry per fusion point in the order of depth, then the readout. Empty before `prepare`."""
        if self._versions is None:
            return []
        plan = self._versions.plan
        points = [self._metrics.read(point.name, point.strategy) for point in plan.points]
        return [*points, self._metrics.read(READOUT_PLACE, plan.readout.kind)]
