"""How busy other programs keep the machine while a benchmark runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from braid_orchestrator.bench.machine import busy_cpu_s, usable_cores


class Surroundings:
    """Begun before the measurements; `to_dict` ends them. ``own_cpu_s``: processor time of the benchmark's own
    processes so far."""

    def __init__(self, own_cpu_s: Callable[[], float]) -> None:
        self._own_cpu_s = own_cpu_s
        self._load_before = os.getloadavg()[0]
        self._busy_s, self._own_s, self._started_s = busy_cpu_s(), own_cpu_s(), time.perf_counter()

    def to_dict(self) -> dict[str, Any]:
        """``load_before``, and ``cores_busy_otherwise``: a share of all cores (None where unknown)."""
        others: float | None = None
        busy_s = busy_cpu_s()
        if busy_s is not None and self._busy_s is not None:
            elapsed_s = time.perf_counter() - self._started_s
            own_s = self._own_cpu_s() - self._own_s
            others = (busy_s - self._busy_s - own_s) / (elapsed_s * usable_cores())
        return {"load_before": self._load_before, "cores_busy_otherwise": others}
