"""Which version of the fusion weights new requests get, on all orchestrators of a braid."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from braid_orchestrator.state.codec import pack, unpack_record
from braid_orchestrator.state.store import StateStore, Subscription
from braid_rpc.errors import UnavailableError

_TABLE, _KEY, _TOPIC = "fusion", "active", "fusion-version"


class FusionVersion:
    """The active version in a store."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def get(self) -> str | None:
        """The version that was activated last; None: nobody has. Raises: UnavailableError, CorruptStateError."""
        value = self._store.get(_TABLE, _KEY)
        if value is None:
            return None
        return str(unpack_record(value, {"version": str}, "the active fusion version")["version"])

    def set(self, version: str) -> None:
        """Activate a version for all, and tell those who listen. Raises: UnavailableError if it isn't activated."""
        self._store.put(_TABLE, _KEY, pack({"version": version}))
        with suppress(UnavailableError):  # who misses the notice sees the value later
            self._store.publish(_TOPIC, b"")

    def subscribe(self, on_change: Callable[[], None]) -> Subscription:
        """Call ``on_change``, from some thread, whenever a version was activated. Raises: UnavailableError."""
        return self._store.subscribe(_TOPIC, lambda message: on_change())
