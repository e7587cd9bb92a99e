"""The rows of the table are medians of what was recorded, and with the rest they make up the token."""

from __future__ import annotations

import pytest

from braid_orchestrator.bench.breakdown import (
    fusion_hop_ms,
    recording_to_dict,
    span_hop_ms,
    span_table,
    summed,
)
from braid_orchestrator.engine.trace import Recording, StepTrace
from braid_rpc.steps import Timings


def recorded(*, stall_s: float = 0.0) -> Recording:
    """Two spans with an exchange between them, three times; ``stall_s`` falls on one of the three."""
    trace = StepTrace()
    trace.recording = Recording()
    for step in range(3):
        late = stall_s if step == 1 else 0.0
        for span, wire_s in ((0, 0.001), (1, 0.003)):
            timings = {0: Timings(0.010, 0.0, 0.002), 1: Timings(0.006, 0.0, 0.002)}
            got_s = {0: 5.012 + wire_s + late, 1: 5.013 + wire_s + late}
            trace.add_span(span, 5.0, {0: 5.0, 1: 5.001}, got_s, timings)
        trace.add_fusion(0, 0.004, Timings(0.001, 0.0, 0.001))
        trace.add_readout(0.005)
    return trace.recording


def test_nothing_is_kept_unless_somebody_records() -> None:
    trace = StepTrace()
    trace.add_span(0, 0.0, {0: 0.0}, {0: 1.0}, {0: Timings()})
    trace.add_fusion(0, 1.0, Timings())
    trace.add_readout(1.0)
    assert trace.recording is None


def test_a_span_is_made_up_of_the_last_shard_and_the_others_messages() -> None:
    times = recorded().spans[0][0]
    assert times.compute_s == pytest.approx(0.010)
    assert times.serialize_s == pytest.approx(0.002)
    assert times.wire_s == pytest.approx(0.001)
    assert times.others_s == pytest.approx(0.001)  # the other's answer was taken after the last one's
    assert times.idle_s == pytest.approx(0.003)
    parts = times.compute_s + times.wait_s + times.serialize_s + times.wire_s + times.others_s
    assert times.wall_s == pytest.approx(parts)


def test_a_hop_is_one_way_and_the_span_with_the_logits_is_left_out() -> None:
    assert span_hop_ms([recorded()]) == pytest.approx((2 + 1) / 2)
    assert fusion_hop_ms([recorded()]) == pytest.approx((1 + 2) / 2)


def test_one_stall_changes_no_median() -> None:
    assert span_hop_ms([recorded(stall_s=1.0)]) == span_hop_ms([recorded()])


def test_the_rows_and_the_rest_make_up_the_token() -> None:
    table = span_table("title", [recorded()], [0.050])
    walls = {row[0]: row[1] for row in table.rows}
    assert list(walls) == [
        "span 1",
        "fusion 1",
        "span 2 (logits)",
        "readout",
        "rest: sampling, text, scheduling",
        "slow ones, above the medians",
        "token",
    ]
    assert walls["token"] == pytest.approx(50.0)
    assert sum(float(wall) for wall in walls.values()) == pytest.approx(100.0)  # type: ignore[arg-type]
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_stall_is_no_part_of_the_rest() -> None:
    stalled = {row[0]: row[1] for row in span_table("title", [recorded(stall_s=0.3)], [0.250]).rows}
    smooth = {row[0]: row[1] for row in span_table("title", [recorded()], [0.050]).rows}
    rest, slow = "rest: sampling, text, scheduling", "slow ones, above the medians"
    assert stalled[rest] == pytest.approx(smooth[rest])
    assert (smooth[slow], stalled[slow]) == (
        pytest.approx(0.0),
        pytest.approx(200.0),
    )  # two spans, one of three


def test_a_recording_becomes_plain_values() -> None:
    value = recording_to_dict(recorded())
    assert [len(times) for times in value["spans"].values()] == [3, 3]
    assert value["fusion"]["0"][0]["wall_s"] == pytest.approx(0.004)
    assert value["readout_s"] == [0.005] * 3


def test_a_summed_recording_has_one_entry_of_everything() -> None:
    total = summed(recorded(stall_s=1.0))
    assert [len(times) for times in (*total.spans.values(), *total.fusion.values())] == [1, 1, 1]
    assert total.spans[0][0].compute_s == pytest.approx(0.030)
    assert total.spans[1][0].wall_s == pytest.approx(sum(t.wall_s for t in recorded(stall_s=1.0).spans[1]))
    assert total.readout_s == [pytest.approx(0.015)]
