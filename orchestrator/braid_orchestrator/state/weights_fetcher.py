"""Brings versions of the fusion weights here that another orchestrator published.

In a thread of its own: they may be large, and heartbeats must not wait for them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from braid_orchestrator.state.fusion_weights import FusionWeights
from braid_orchestrator.state.runs import Runs
from braid_rpc.errors import BraidError

_log = logging.getLogger(__name__)

# What failed is not tried with every heartbeat.
_RETRY_EVERY_S = 10.0
_STOP_S = 5.0


class WeightsFetcher:
    """At most one version is on its way. ``on_arrival`` is called when one is here."""

    def __init__(self, weights: FusionWeights, engine: Runs, on_arrival: Callable[[], None]) -> None:
        self._weights = weights
        self._engine = engine
        self._on_arrival = on_arrival
        self._thread: threading.Thread | None = None
        self._failed = ""
        self._retry_at_s = 0.0

    def begin(self, version: str) -> None:
        """Fetch a version unless one is on its way, or this one has failed a moment ago. Not for two threads."""
        if self._thread is not None and self._thread.is_alive():
            return
        if version == self._failed and time.monotonic() < self._retry_at_s:
            return
        self._thread = threading.Thread(target=self._fetch, args=(version,), name="weights", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait a moment for what is on its way."""
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _fetch(self, version: str) -> None:
        try:
            found = self._weights.fetch(version)
            if found is None:
                raise BraidError("its weights are neither here nor in the state store")
            self._engine.publish(*found, version, activate=False)
        except BraidError as error:
            self._failed, self._retry_at_s = version, time.monotonic() + _RETRY_EVERY_S
            _log.warning("fusion version %s was activated elsewhere and is not used here: %s", version, error)
            return
        _log.info("fusion version %s was published elsewhere and is here now", version)
        self._on_arrival()
