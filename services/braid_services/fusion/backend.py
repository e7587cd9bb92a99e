"""The fusion modules of one braid, with their versions and metrics. Knows torch and no network."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_rpc.errors import ConflictError
from braid_services.fusion.metrics import READOUT_PLACE, PointMetrics, RunningMetrics
from braid_services.fusion.stream import FusionStream
from braid_services.fusion.versions import VersionInfo, Versions

__all__ = ["FusionBackend", "FusionStatus", "FusionStream"]


@dataclass(frozen=True, slots=True)
class FusionStatus:
    """What a backend says about itself; ``plan_hash`` is empty until it is prepared."""

    plan_hash: str
    active_version: str
    loaded_versions: tuple[str, ...]
    num_sessions: int
    num_parameters: int
    cache_bytes: int


class FusionBackend:
    """Serves one plan at a time, to any number of streams in threads of their own.

    ``weights_dir`` is a folder of versions as `braid_fusion.weights.save_stack` writes them (None: the
    modules are untrained), ``version`` the one to begin with (None: the newest).
    """

    def __init__(self, weights_dir: Path | str | None = None, version: str | None = None) -> None:
        self._folder = None if weights_dir is None else Path(weights_dir)
        self._first_version = version or None
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

    def list_versions(self) -> list[VersionInfo]:
        """All versions, the oldest first. Raises: ConflictError before `prepare`."""
        return self.versions.list()

    def status(self) -> FusionStatus:
        """As it is now."""
        versions = self._versions
        if versions is None:
            return FusionStatus("", "", (), 0, 0, 0)
        with self.lock:
            streams = list(self._streams)
        return FusionStatus(
            plan_hash=versions.plan.hash(),
            active_version=versions.active,
            loaded_versions=versions.loaded,
            num_sessions=sum(stream.num_sessions for stream in streams),
            num_parameters=versions.stack(versions.active).num_parameters(),
            cache_bytes=sum(stream.cache_bytes() for stream in streams),
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
