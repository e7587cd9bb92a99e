"""Where to connect to a part of a braid: what the registry says, as seen from this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from braid_orchestrator.serving.probing import probe
from braid_orchestrator.state.lease import this_host
from braid_orchestrator.state.registry import Registry, ReplicaRecord
from braid_rpc.channels import unix_path
from braid_rpc.errors import BraidError, UnavailableError

_PROBE_S = 1.0
_LOOK_EVERY_S = 0.1


class Discovery:
    """The targets of one part's replicas. ``own`` are those that are known without asking: they count always."""

    def __init__(self, registry: Registry, part: str, own: Sequence[str] = ()) -> None:
        self._registry = registry
        self._part = part
        self._own = list(own)
        self._host = this_host()

    def targets(self) -> list[str]:
        """One per replica that can be reached from here, the shortest way. Raises: UnavailableError, if nothing is
        known without the store and the store does not answer."""
        try:
            records = self._registry.replicas(self._part)
        except UnavailableError:
            if self._own:
                return list(self._own)
            raise
        others = [self._target(record) for record in records if not set(self._own) & set(record.addresses)]
        return [*self._own, *(target for target in others if target is not None)]

    def any_target(self) -> str:
        """One that is well. Raises: UnavailableError."""
        failure: BraidError | None = None
        for target in self.targets():
            try:
                probe(target, _PROBE_S)
            except UnavailableError as error:
                failure = error
            else:
                return target
        raise failure or UnavailableError(f"{self._part!r}: no replica is registered", retry_after_s=1.0)

    def wait(self, timeout_s: float, check_alive: Callable[[], None] = lambda: None) -> None:
        """Block until a replica is well. ``check_alive`` may raise to end the waiting. Raises: UnavailableError."""
        give_up_s = time.monotonic() + timeout_s
        while True:
            check_alive()
            try:
                self.any_target()
                return
            except UnavailableError as error:
                if time.monotonic() > give_up_s:
                    raise UnavailableError(f"{error.message}, for {timeout_s:g} s") from None
            time.sleep(_LOOK_EVERY_S)

    def _target(self, record: ReplicaRecord) -> str | None:
        """The shortest way to a replica: a socket file on this machine, else a port."""
        unix = [address for address in record.addresses if address.startswith("unix:")]
        if record.host == self._host:
            for address in unix:
                if Path(unix_path(address)).exists():
                    return address
        return next((address for address in record.addresses if address not in unix), None)
