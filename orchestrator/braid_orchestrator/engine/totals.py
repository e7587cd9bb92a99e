"""Sums over all steps so far: always on, so adding to them has to cost next to nothing.

The engine's thread adds, any thread may read: every figure is a number of its own that only grows, so what is read
may be a step old but is never wrong. Knows no names: shards, spans and points are told by their indices.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from braid_rpc.steps import Timings

STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STEP_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
STEP_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(slots=True)
class PartSums:
    """How often something was done, and where its time went, in seconds.

    ``compute_s`` and ``wait_s`` (for other callers) are the other side's own figures, ``serialize_s`` is both sides',
    ``wire_s`` what was left of the time until the answer was there.
    """

    count: int = 0
    compute_s: float = 0.0
    wire_s: float = 0.0
    wait_s: float = 0.0
    serialize_s: float = 0.0

    def add(self, timings: Timings, wire_s: float) -> None:
        """One more."""
        self.count += 1
        self.compute_s += timings.compute_s
        self.wire_s += wire_s
        self.wait_s += timings.wait_s
        self.serialize_s += timings.serialize_s

    def add_sums(self, later: PartSums, earlier: PartSums | None = None) -> None:
        """All that came between two states of other sums; ``earlier`` None: from their beginning."""
        earlier = earlier or _NOTHING
        self.count += later.count - earlier.count
        self.compute_s += later.compute_s - earlier.compute_s
        self.wire_s += later.wire_s - earlier.wire_s
        self.wait_s += later.wait_s - earlier.wait_s
        self.serialize_s += later.serialize_s - earlier.serialize_s

    def copy(self) -> PartSums:
        """As they are now."""
        return PartSums(self.count, self.compute_s, self.wire_s, self.wait_s, self.serialize_s)


_NOTHING = PartSums()


class Distribution:
    """How many values were at most each of the ``bounds``, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True)
class StepTotals:
    """``spans`` by shard and span (-1: a shard that runs alone, from embedding to head), ``points`` by fusion
    point."""

    spans: dict[tuple[int, int], PartSums] = field(default_factory=dict)
    points: dict[int, PartSums] = field(default_factory=dict)
    num_readouts: int = 0
    readout_s: float = 0.0
    seconds: Distribution = field(default_factory=lambda: Distribution(STEP_SECONDS))
    rows: Distribution = field(default_factory=lambda: Distribution(STEP_ROWS))
    sequences: Distribution = field(default_factory=lambda: Distribution(STEP_SEQUENCES))

    def add_span(
        self,
        span: int,
        sent_s: Mapping[int, float],
        got_s: Mapping[int, float],
        timings: Mapping[int, Timings],
    ) -> None:
        """Several shards ran a span at the same time. Per shard: when its message was begun, and when its answer was
        there, in the order in which the answers were taken."""
        taken_s = 0.0
        for shard, its_got_s in got_s.items():
            its = timings[shard]
            done_s = sent_s[shard] + its.compute_s + its.wait_s + its.serialize_s
            # An answer that lay there while the engine waited for another shard's was not on the wire.
            wire_s = its_got_s - (done_s if done_s > taken_s else taken_s)
            sums = self.spans.get((shard, span))
            if sums is None:
                sums = self.spans[shard, span] = PartSums()
            sums.add(its, wire_s if wire_s > 0.0 else 0.0)
            taken_s = its_got_s

    def add_fusion(self, point: int, wall_s: float, timings: Timings) -> None:
        """States were exchanged at a point, which took ``wall_s`` from the engine's view."""
        sums = self.points.get(point)
        if sums is None:
            sums = self.points[point] = PartSums()
        wire_s = wall_s - timings.compute_s - timings.wait_s - timings.serialize_s
        sums.add(timings, wire_s if wire_s > 0.0 else 0.0)

    def add_readout(self, wall_s: float) -> None:
        """Next-token scores were mixed."""
        self.num_readouts += 1
        self.readout_s += wall_s

    def add_step(self, wall_s: float, num_rows: int, num_sequences: int) -> None:
        """A whole step is done: that many rows of that many sequences."""
        self.seconds.add(wall_s)
        self.rows.add(num_rows)
        self.sequences.add(num_sequences)
