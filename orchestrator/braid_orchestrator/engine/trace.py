"""Where the time of the steps goes: sums always, and each step by itself once recording begins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from braid_orchestrator.engine.totals import StepTotals
from braid_rpc.steps import Timings


@dataclass(frozen=True, slots=True)
class SpanTimes:
    """One span that all shards ran at the same time, in seconds.

    ``wall_s`` is from asking the first shard to having all answers. It is made up of what the shard that was
    done last took on its server (``compute_s``, and ``wait_s`` for other callers), of ``serialize_s`` on both
    ends and ``wire_s`` there and back of its messages, and of ``others_s``: messages of other shards in between.
    ``idle_s`` is how long the shards that were done earlier had nothing to do, on average.
    """

    wall_s: float
    compute_s: float
    wait_s: float
    serialize_s: float
    wire_s: float
    others_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class FusionTimes:
    """One exchange at a point, in seconds. ``wall_s`` is seen from the engine; ``wire_s`` is what it took beyond
    arithmetic and serialisation."""

    wall_s: float
    compute_s: float
    serialize_s: float
    wire_s: float


@dataclass(slots=True)
class Recording:
    """All spans, exchanges and readouts in their order, by span (-1: a shard alone, from embedding to head) and
    by point. It grows without a bound."""

    spans: dict[int, list[SpanTimes]] = field(default_factory=lambda: defaultdict(list))
    fusion: dict[int, list[FusionTimes]] = field(default_factory=lambda: defaultdict(list))
    readout_s: list[float] = field(default_factory=list)


class StepTrace:
    """What the lock step reports to. ``totals`` are of all steps; ``recording`` is None unless somebody has begun
    one."""

    def __init__(self) -> None:
        self.totals = StepTotals()
        self.recording: Recording | None = None

    def add_span(
        self,
        span: int,
        started_s: float,
        sent_s: Mapping[int, float],
        got_s: Mapping[int, float],
        timings: Mapping[int, Timings],
    ) -> None:
        """All shards finished a span. Per shard: when its message was begun, and when its answer was there."""
        self.totals.add_span(span, sent_s, got_s, timings)
        if self.recording is None:
            return
        on_server = {shard: t.compute_s + t.wait_s + t.serialize_s for shard, t in timings.items()}
        done_s = {shard: sent_s[shard] + seconds for shard, seconds in on_server.items()}
        last = max(done_s, key=done_s.__getitem__)
        ended_s = max(got_s.values())
        self.recording.spans[span].append(
            SpanTimes(
                wall_s=ended_s - started_s,
                compute_s=timings[last].compute_s,
                wait_s=timings[last].wait_s,
                serialize_s=timings[last].serialize_s,
                wire_s=max(got_s[last] - done_s[last], 0.0),
                others_s=sent_s[last] - started_s + ended_s - got_s[last],
                idle_s=sum(done_s[last] - done for done in done_s.values()) / max(len(done_s) - 1, 1),
            )
        )

    def add_fusion(self, point: int, wall_s: float, timings: Timings) -> None:
        """States were exchanged at a point."""
        self.totals.add_fusion(point, wall_s, timings)
        if self.recording is not None:
            wire_s = max(wall_s - timings.compute_s - timings.wait_s - timings.serialize_s, 0.0)
            self.recording.fusion[point].append(
                FusionTimes(wall_s, timings.compute_s, timings.serialize_s, wire_s)
            )

    def add_readout(self, wall_s: float) -> None:
        """Next-token scores were mixed."""
        self.totals.add_readout(wall_s)
        if self.recording is not None:
            self.recording.readout_s.append(wall_s)
