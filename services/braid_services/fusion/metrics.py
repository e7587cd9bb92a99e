"""Running means of what fusion points and readout report. Cheap enough for the hot path: sampled, not always on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

SAMPLE_EVERY = 16
"""One call in so many computes its metrics; all rows are counted."""

READOUT_PLACE = ""
"""Where the readout is counted: no fusion point has an empty name."""


@dataclass(frozen=True, slots=True)
class PointMetrics:
    """``mean`` is over the rows of the sampled calls; ``rows`` counts all since the start."""

    point: str
    strategy: str
    rows: int
    mean: Mapping[str, float]


@dataclass(slots=True)
class _Running:
    rows: int = 0
    calls: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)


class RunningMetrics:
    """Means per place, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[str, _Running] = {}

    def count(self, place: str, num_rows: int) -> bool:
        """Count the rows of one call; says whether this call is to compute its metrics."""
        with self._lock:
            running = self._places.get(place)
            if running is None:
                running = self._places[place] = _Running()
            running.rows += num_rows
            running.calls += 1
            return running.calls % SAMPLE_EVERY == 1

    def add(self, place: str, values: Mapping[str, Tensor], num_rows: int) -> None:
        """Take the metrics of a sampled call of ``num_rows`` rows."""
        floats = {name: float(value) for name, value in values.items()}
        with self._lock:
            running = self._places.setdefault(place, _Running())
            for name, value in floats.items():
                running.sums[name] = running.sums.get(name, 0.0) + value * num_rows
                running.weights[name] = running.weights.get(name, 0) + num_rows

    def read(self, place: str, strategy: str) -> PointMetrics:
        """What is known of a place so far."""
        with self._lock:
            running = self._places.get(place, _Running())
            mean = {name: total / running.weights[name] for name, total in running.sums.items()}
            return PointMetrics(place or "readout", strategy, running.rows, mean)
