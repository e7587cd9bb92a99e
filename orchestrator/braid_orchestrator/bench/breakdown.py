"""From recordings to a table: where the time of a token goes, span by span. In milliseconds, as medians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from statistics import median
from typing import Any, TypeVar

from braid_orchestrator.bench.report import Cell, Table
from braid_orchestrator.engine.trace import FusionTimes, Recording, SpanTimes

MS = 1e3

TimesT = TypeVar("TimesT", SpanTimes, FusionTimes)


def recording_to_dict(recording: Recording) -> dict[str, Any]:
    """All figures of a recording, in seconds."""
    return {
        "spans": {
            str(span): [asdict(one) for one in times] for span, times in sorted(recording.spans.items())
        },
        "fusion": {
            str(point): [asdict(one) for one in times] for point, times in sorted(recording.fusion.items())
        },
        "readout_s": recording.readout_s,
    }


def span_hop_ms(recordings: Sequence[Recording]) -> float:
    """Serialising and moving one frame of one row, from a process to another: half of what that takes there and
    back, over all spans but the last, whose reply brings logits."""
    times = [
        one
        for recording in recordings
        for span in sorted(recording.spans)[:-1]
        for one in recording.spans[span]
    ]
    return _median(times, lambda one: one.serialize_s + one.wire_s) / 2


def fusion_hop_ms(recordings: Sequence[Recording]) -> float:
    """The same for a call of the fusion service, whose messages hold a frame per shard."""
    times = [one for recording in recordings for point in recording.fusion.values() for one in point]
    return _median(times, lambda one: one.serialize_s + one.wire_s) / 2


def summed(recording: Recording) -> Recording:
    """One that has a single entry per span, point and readout: everything that was recorded there, added up."""
    total = Recording()
    for span, spans in recording.spans.items():
        total.spans[span].append(_sum(SpanTimes, spans))
    for point, exchanges in recording.fusion.items():
        total.fusion[point].append(_sum(FusionTimes, exchanges))
    if recording.readout_s:
        total.readout_s.append(sum(recording.readout_s))
    return total


def span_table(
    title: str,
    recordings: Sequence[Recording],
    seconds_per_token: Sequence[float],
    last_rows: tuple[str, str] = ("rest: sampling, text, scheduling", "token"),
) -> Table:
    """One row per span and per exchange, in their order. ``last_rows``: what the rest and the whole are called."""
    rows: list[tuple[Cell, ...]] = []
    spans = sorted(recordings[0].spans)
    for span in spans:
        times = [one for recording in recordings for one in recording.spans[span]]
        rows.append(
            (
                f"span {span + 1}" + (" (logits)" if span == spans[-1] else ""),
                _median(times, lambda one: one.wall_s),
                _median(times, lambda one: one.compute_s + one.wait_s),
                _median(times, lambda one: one.serialize_s),
                _median(times, lambda one: one.wire_s),
                _median(times, lambda one: one.others_s),
                None,
                _median(times, lambda one: one.idle_s),
            )
        )
        exchanges = [one for recording in recordings for one in recording.fusion.get(span, ())]
        if exchanges:
            rows.append(
                (
                    f"fusion {span + 1}",
                    _median(exchanges, lambda one: one.wall_s),
                    None,
                    _median(exchanges, lambda one: one.serialize_s),
                    _median(exchanges, lambda one: one.wire_s),
                    None,
                    _median(exchanges, lambda one: one.compute_s),
                    None,
                )
            )
    readouts = [seconds for recording in recordings for seconds in recording.readout_s]
    if readouts:
        rows.append(("readout", median(readouts) * MS, *[None] * 6))
    sums = [sum(float(row[column] or 0.0) for row in rows) for column in range(1, 8)]
    token = median(seconds_per_token) * MS
    rest = median(
        seconds * MS - _mean_ms(recording)
        for seconds, recording in zip(seconds_per_token, recordings, strict=True)
    )
    rows.append((last_rows[0], rest, *[None] * 6))
    rows.append(("slow ones, above the medians", token - sums[0] - rest, *[None] * 6))
    rows.append((last_rows[1], token, *sums[1:]))
    return Table(
        title,
        ("ms", "wall", "compute", "serialise", "wire", "other shard", "fusion", "faster shard waits"),
        tuple(rows),
        "Compute, serialise and wire (there and back) are those of the shard that was done last; beside them the "
        "engine handles the other shard's messages.",
    )


def _mean_ms(recording: Recording) -> float:
    """Of one step, all that was recorded of it."""
    spans_s = sum(one.wall_s for times in recording.spans.values() for one in times)
    fusion_s = sum(one.wall_s for times in recording.fusion.values() for one in times)
    total_s = spans_s + fusion_s + sum(recording.readout_s)
    return total_s * MS / len(next(iter(recording.spans.values())))


def _sum(kind: type[TimesT], times: Sequence[TimesT]) -> TimesT:
    return kind(**{each.name: sum(getattr(one, each.name) for one in times) for each in fields(kind)})


def _median(times: Sequence[TimesT], of: Callable[[TimesT], float]) -> float:
    return median(of(one) for one in times) * MS
