"""What the steps took that a request took part in: the difference of the totals before and after each of them.

Only for requests that ask for it. Knows no shards; names come from the plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from braid_orchestrator.engine.totals import PartSums, StepTotals
from braid_rpc.step_times import PartTimes, StepTimes


class StepShare:
    """One request's steps so far."""

    def __init__(self, shards: Sequence[str], points: Sequence[str]) -> None:
        """``shards`` and ``points`` are the plan's names, in its order."""
        self._shard_names = shards
        self._point_names = points
        self._count = 0
        self._wall_s = 0.0
        self._readout_s = 0.0
        self._shards: dict[int, PartSums] = {}
        self._points: dict[int, PartSums] = {}

    def add(self, step: StepDifference, alone: int | None) -> None:
        """One more step, in which it was braided or ran on one shard ``alone``."""
        self._count += 1
        self._wall_s += step.wall_s
        for (shard, span), (before, after) in step.spans.items():
            if (alone is None) == (span >= 0) and alone in (None, shard):
                self._shards.setdefault(shard, PartSums()).add_sums(after, before)
        if alone is None:
            self._readout_s += step.readout_s
            for point, (before, after) in step.points.items():
                self._points.setdefault(point, PartSums()).add_sums(after, before)

    def times(self) -> StepTimes:
        """All together."""
        return StepTimes(
            self._count,
            self._wall_s,
            self._readout_s,
            {self._shard_names[shard]: _times(sums) for shard, sums in sorted(self._shards.items())},
            {self._point_names[point]: _times(sums) for point, sums in sorted(self._points.items())},
        )


class StepDifference:
    """Made before a step, `finish`ed behind it; then it says what the step added to the totals."""

    def __init__(self, totals: StepTotals) -> None:
        self._totals = totals
        self._spans = {key: sums.copy() for key, sums in totals.spans.items()}
        self._points = {key: sums.copy() for key, sums in totals.points.items()}
        self._readout_s = totals.readout_s
        self._started_s = time.perf_counter()
        self.wall_s = 0.0
        self.readout_s = 0.0
        self.spans: dict[tuple[int, int], tuple[PartSums | None, PartSums]] = {}
        self.points: dict[int, tuple[PartSums | None, PartSums]] = {}

    def finish(self, shares: Iterable[StepShare], alone: int | None) -> None:
        """The step is done: it counts for these."""
        self.wall_s = time.perf_counter() - self._started_s
        self.readout_s = self._totals.readout_s - self._readout_s
        for key, sums in self._totals.spans.items():
            before = self._spans.get(key)
            if before is None or sums.count > before.count:
                self.spans[key] = before, sums
        for point, sums in self._totals.points.items():
            earlier = self._points.get(point)
            if earlier is None or sums.count > earlier.count:
                self.points[point] = earlier, sums
        for share in shares:
            share.add(self, alone)


def _times(sums: PartSums) -> PartTimes:
    return PartTimes(sums.count, sums.compute_s, sums.wire_s, sums.wait_s, sums.serialize_s)
