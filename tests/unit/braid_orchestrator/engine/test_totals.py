from __future__ import annotations

import time

import pytest

from braid_orchestrator.engine.totals import Distribution, PartSums, StepTotals
from braid_orchestrator.engine.trace import StepTrace
from braid_rpc.steps import Timings

# A tenth of what is measured on a slow core would do; a step itself takes milliseconds.
MAX_STEP_COST_S = 50e-6


def test_each_shard_has_its_own_sums_by_span() -> None:
    totals = StepTotals()
    for _ in range(2):
        totals.add_span(
            1,
            {0: 10.0, 1: 10.0},
            {0: 10.5, 1: 12.5},
            {0: Timings(0.25, 0.0625, 0.125), 1: Timings(2.0, 0.0, 0.25)},
        )
    assert totals.spans == {
        (0, 1): PartSums(2, compute_s=0.5, wire_s=0.125, wait_s=0.125, serialize_s=0.25),
        (1, 1): PartSums(2, compute_s=4.0, wire_s=0.5, wait_s=0.0, serialize_s=0.5),
    }


def test_lying_there_while_another_shard_is_waited_for_is_not_the_wire() -> None:
    totals = StepTotals()
    totals.add_span(0, {0: 0.0, 1: 0.0}, {0: 4.0, 1: 4.25}, {0: Timings(3.5), 1: Timings(1.0)})
    assert totals.spans[0, 0].wire_s == 0.5
    assert totals.spans[1, 0].wire_s == 0.25


def test_what_a_fusion_point_took_beyond_its_own_figures_is_wire() -> None:
    totals = StepTotals()
    totals.add_fusion(2, 1.0, Timings(0.5, 0.0, 0.125))
    assert totals.points == {2: PartSums(1, compute_s=0.5, wire_s=0.375, serialize_s=0.125)}


def test_clocks_that_disagree_give_no_negative_time() -> None:
    totals = StepTotals()
    totals.add_span(0, {0: 0.0}, {0: 1.0}, {0: Timings(2.0)})
    totals.add_fusion(0, 1.0, Timings(2.0))
    assert totals.spans[0, 0].wire_s == totals.points[0].wire_s == 0.0


def test_a_bound_belongs_to_what_is_at_most_it() -> None:
    values = Distribution((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 5):
        values.add(value)
    assert values.counts == [2, 1, 1, 1]
    assert values.sum == 12.0


@pytest.mark.parametrize("num_shards", [2, 4])
def test_the_sums_of_a_step_cost_next_to_nothing(num_shards: int) -> None:
    """Four spans with three points: the least of several rounds, since other processes may be in the way."""
    trace = StepTrace()
    shards = range(num_shards)
    sent_s, got_s = dict.fromkeys(shards, 0.0), {shard: 1.0 + shard for shard in shards}
    timings = dict.fromkeys(shards, Timings(0.5, 0.1, 0.1))
    steps, least_s = 100, float("inf")
    for _ in range(20):
        started_s = time.perf_counter()
        for _ in range(steps):
            for span in range(4):
                trace.add_span(span, 0.0, sent_s, got_s, timings)
            for point in range(3):
                trace.add_fusion(point, 0.01, timings[0])
            trace.add_readout(0.01)
            trace.totals.add_step(0.02, 32, 32)
        least_s = min(least_s, (time.perf_counter() - started_s) / steps)
    assert least_s < MAX_STEP_COST_S, f"{least_s * 1e6:.1f} us a step"
