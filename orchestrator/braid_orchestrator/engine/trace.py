"""Where the time of the steps goes, added up. Knows only what it is told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from braid_rpc.steps import Timings


@dataclass
class SpanTotal:
    """Sums over many steps, in seconds, of one span that all shards run at the same time.

    ``wall_s`` is from asking the first shard to the answer of the slowest: its ``slowest_compute_s``, its
    ``slowest_wait_s`` for other callers, its ``slowest_serialize_s`` on both ends, and ``wire_s``, the rest.
    ``idle_s[s]`` is how long shard s had nothing to do until the slowest was done.
    """

    count: int = 0
    wall_s: float = 0.0
    wire_s: float = 0.0
    slowest_compute_s: float = 0.0
    slowest_wait_s: float = 0.0
    slowest_serialize_s: float = 0.0
    compute_s: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    wait_s: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    serialize_s: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    idle_s: dict[int, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class FusionTotal:
    """Sums over many exchanges at one point, in seconds; ``wall_s`` is seen from the engine."""

    count: int = 0
    wall_s: float = 0.0
    compute_s: float = 0.0
    serialize_s: float = 0.0


@dataclass
class StepTrace:
    """Totals per span, per point, and of the readout. Span -1 is a shard alone, from embedding to head."""

    spans: dict[int, SpanTotal] = field(default_factory=lambda: defaultdict(SpanTotal))
    fusion: dict[int, FusionTotal] = field(default_factory=lambda: defaultdict(FusionTotal))
    readout_s: float = 0.0
    num_readouts: int = 0

    def reset(self) -> None:
        """Begin anew. In the engine's thread, which is the one that adds."""
        self.spans.clear()
        self.fusion.clear()
        self.readout_s = 0.0
        self.num_readouts = 0

    def add_span(self, span: int, wall_s: float, timings: Mapping[int, Timings]) -> None:
        """All shards finished a span."""
        total = self.spans[span]
        on_server = {shard: t.compute_s + t.wait_s + t.serialize_s for shard, t in timings.items()}
        slowest_shard = max(on_server, key=on_server.__getitem__)
        slowest = on_server[slowest_shard]
        total.count += 1
        total.wall_s += wall_s
        total.wire_s += max(wall_s - slowest, 0.0)
        total.slowest_compute_s += timings[slowest_shard].compute_s
        total.slowest_wait_s += timings[slowest_shard].wait_s
        total.slowest_serialize_s += timings[slowest_shard].serialize_s
        for shard, one in timings.items():
            total.compute_s[shard] += one.compute_s
            total.wait_s[shard] += one.wait_s
            total.serialize_s[shard] += one.serialize_s
            total.idle_s[shard] += slowest - on_server[shard]

    def add_fusion(self, point: int, wall_s: float, timings: Timings) -> None:
        """States were exchanged at a point."""
        total = self.fusion[point]
        total.count += 1
        total.wall_s += wall_s
        total.compute_s += timings.compute_s
        total.serialize_s += timings.serialize_s

    def add_readout(self, wall_s: float) -> None:
        """Next-token scores were mixed."""
        self.readout_s += wall_s
        self.num_readouts += 1
