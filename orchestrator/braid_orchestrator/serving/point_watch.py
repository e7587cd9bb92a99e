"""What the fusion modules say about themselves: asked seldom, never waited for long, since they may be away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from braid_rpc.errors import BraidError

if TYPE_CHECKING:
    from braid_orchestrator.engine.ports import PointMetrics

EVERY_S = 3.0
PATIENCE_S = 1.0


class PointWatch:
    """The latest answer of ``ask``, which a thread of its own waits for. From any thread."""

    def __init__(
        self,
        ask: Callable[[], Sequence[PointMetrics]],
        every_s: float = EVERY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """At most one question each ``every_s``; whoever reads waits for its answer up to ``patience_s``."""
        self._ask = ask
        self._every_s = every_s
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._asked_s = float("-inf")
        self._asking: threading.Thread | None = None
        self._latest: Sequence[PointMetrics] = ()

    def read(self) -> Sequence[PointMetrics]:
        """What was said last; nothing if it was nothing yet, or that the modules are away."""
        with self._lock:
            asking = self._asking
            if asking is None or not asking.is_alive():
                if time.monotonic() - self._asked_s < self._every_s:
                    return self._latest
                self._asked_s = time.monotonic()
                asking = self._asking = threading.Thread(target=self._run, name="point-metrics", daemon=True)
                asking.start()
        asking.join(self._patience_s)
        return self._latest

    def _run(self) -> None:
        try:
            self._latest = self._ask()
        except BraidError:
            self._latest = ()  # that it is away shows elsewhere
