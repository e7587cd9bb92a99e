"""From a trace to a table: where the time of a token goes, span by span. In milliseconds per token."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from braid_orchestrator.bench.report import Cell, Table
from braid_orchestrator.engine.trace import StepTrace

MS = 1e3


def trace_to_dict(trace: StepTrace, seconds: float) -> dict[str, Any]:
    """All sums of a trace, in seconds, with what the whole decode took."""
    return {
        "seconds": seconds,
        "spans": {str(span): _plain(vars(total)) for span, total in sorted(trace.spans.items())},
        "fusion": {str(point): _plain(vars(total)) for point, total in sorted(trace.fusion.items())},
        "readout_s": trace.readout_s,
        "num_readouts": trace.num_readouts,
    }


def _plain(total: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {str(shard): seconds for shard, seconds in value.items()} if isinstance(value, dict) else value
        for name, value in total.items()
    }


def hop_ms(traces: Sequence[StepTrace]) -> float:
    """Serialisation and wire, there and back, of a span that brings one frame of states: the median over runs
    of the mean over all spans but the last, whose reply brings logits."""
    per_run = []
    for trace in traces:
        spans = [trace.spans[span] for span in sorted(trace.spans)[:-1]]
        seconds = sum(total.slowest_serialize_s + total.wire_s for total in spans)
        per_run.append(seconds / max(sum(total.count for total in spans), 1) * MS)
    return median(per_run)


def fusion_hop_ms(traces: Sequence[StepTrace]) -> float:
    """The same of a call of the fusion service with one frame per shard."""
    per_run = []
    for trace in traces:
        totals = trace.fusion.values()
        seconds = sum(total.wall_s - total.compute_s for total in totals)
        per_run.append(seconds / max(sum(total.count for total in totals), 1) * MS)
    return median(per_run)


def span_table(title: str, traces: Sequence[StepTrace], seconds: Sequence[float]) -> Table:
    """One row per span and per exchange, in their order; medians over the runs."""
    rows: list[tuple[Cell, ...]] = []
    spans = sorted(traces[0].spans)
    for span in spans:
        last = " (logits)" if span == spans[-1] else ""

        def of(name: str, span: int = span) -> float:
            return float(median(getattr(t.spans[span], name) / t.spans[span].count for t in traces) * MS)

        idle = median(sum(t.spans[span].idle_s.values()) / t.spans[span].count for t in traces) * MS
        rows.append(
            (
                f"span {span + 1}{last}",
                of("wall_s"),
                of("slowest_compute_s"),
                of("slowest_serialize_s"),
                of("wire_s"),
                None,
                idle,
            )
        )
        if span in traces[0].fusion:
            totals = [t.fusion[span] for t in traces]
            wall = median(t.wall_s / t.count for t in totals) * MS
            compute = median(t.compute_s / t.count for t in totals) * MS
            serialize = median(t.serialize_s / t.count for t in totals) * MS
            rows.append(
                (f"fusion {span + 1}", wall, None, serialize, wall - compute - serialize, compute, None)
            )
    readout = median(t.readout_s / max(t.num_readouts, 1) for t in traces) * MS
    rows.append(("readout", readout, None, None, None, None, None))
    in_rows = sum(float(row[1] or 0.0) for row in rows)
    steps = traces[0].spans[spans[-1]].count
    token = median(s / steps for s in seconds) * MS
    rows.append(("sampling, text, scheduling", token - in_rows, None, None, None, None, None))
    rows.append(
        (
            "token",
            token,
            *(sum(float(row[column] or 0.0) for row in rows) for column in range(2, 7)),
        )
    )
    return Table(
        title,
        ("ms per token", "wall", "compute", "serialise", "wire", "fusion", "faster shard waits"),
        tuple(rows),
        "Compute and serialise are the slower shard's; wire is what is left of the wall time. "
        "Without a fusion service, its row has no wire but the call itself.",
    )
