"""What an engine has counted by itself, as Prometheus metrics: read when scraped, nothing is kept twice.

Labels are names out of the configuration, so there is a bounded number of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from braid_orchestrator.engine.totals import Distribution, PartSums, StepTotals
from braid_orchestrator.serving.point_watch import PointWatch
from braid_orchestrator.serving.port import BraidPort

if TYPE_CHECKING:
    from braid_orchestrator.engine.engine import EngineStats
    from braid_orchestrator.engine.ports import PointMetrics

_PARTS = ("compute", "wire", "wait", "serialize")


class EngineMetrics(Collector):
    """The metrics of the engine behind a service."""

    def __init__(self, service: BraidPort) -> None:
        self._service = service
        self._points = PointWatch(service.point_metrics)

    def collect(self) -> Iterator[Metric]:
        """All families, those without samples too."""
        description = self._service.describe()
        stats = self._service.stats()
        yield from _of_requests(stats)
        yield from _of_shards(stats)
        shards = [shard.name for shard in description.shards]
        points = [point.name for point in description.points]
        yield from _of_steps(stats.totals, shards, points)
        yield from _of_points(self._points.read())
        yield _store(self._service.store_answers())
        yield InfoMetricFamily(
            "braid_weights", "The fusion weights of new requests.", {"version": description.weights_version}
        )


def _of_requests(stats: EngineStats) -> Iterator[Metric]:
    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    yield gauge("braid_requests_running", "Requests being answered.", stats.running)
    yield gauge("braid_requests_waiting", "Requests in the queue.", stats.waiting)
    yield gauge("braid_parts_complete", "1 while every part of the braid answers.", float(stats.is_whole))
    yield counter("braid_steps", "Steps that were run.", stats.steps)
    yield counter("braid_preemptions", "Sequences that gave way in a full cache.", stats.preemptions)
    yield counter("braid_parts_lost", "How often a part of the braid was lost.", stats.losses)
    yield counter("braid_recoveries", "How often all parts were back after that.", stats.recoveries)


def _of_shards(stats: EngineStats) -> Iterator[Metric]:
    free, total = stats.cache_bytes_free, stats.cache_bytes_total
    used = {shard: 1.0 - free[shard] / size if size else 0.0 for shard, size in total.items()}
    for name, about, by_shard in (
        ("braid_cache_free_bytes", "Room left for keys and values.", free),
        ("braid_cache_total_bytes", "Room for keys and values.", total),
        ("braid_kv_cache_usage_ratio", "The part of the room that is taken, 0 to 1.", used),
        ("braid_shard_replicas", "Replicas of a shard that are connected.", stats.replicas),
    ):
        yield _labelled(GaugeMetricFamily(name, about, labels=["shard"]), by_shard)
    links = CounterMetricFamily(
        "braid_link_bytes", "Bytes to and from a shard, since it was connected.", labels=["shard"]
    )
    yield _labelled(links, stats.link_bytes)


def _of_steps(totals: StepTotals, shards: Sequence[str], points: Sequence[str]) -> Iterator[Metric]:
    yield _histogram("braid_step_seconds", "One step, through all spans and the readout.", totals.seconds)
    yield _histogram("braid_step_rows", "Rows of the anchor in a step.", totals.rows)
    yield _histogram("braid_step_sequences", "Sequences in a step.", totals.sequences)
    spans = sorted(totals.spans.copy().items())
    by_span = [((shards[shard], _span(span)), sums) for (shard, span), sums in spans]
    yield from _sums("braid_span", "runs", "spans that a shard ran", ["shard", "span"], by_span)
    by_point = [((points[point],), sums) for point, sums in sorted(totals.points.copy().items())]
    yield from _sums("braid_fusion", "exchanges", "exchanges at a fusion point", ["point"], by_point)
    counter = CounterMetricFamily
    yield counter("braid_readouts", "How often next-token scores were mixed.", totals.num_readouts)
    yield counter("braid_readout_seconds", "What mixing them took.", totals.readout_s)


def _span(span: int) -> str:
    return "all" if span < 0 else str(span)


def _sums(
    prefix: str, counted: str, what: str, labels: list[str], sums: Iterable[tuple[tuple[str, ...], PartSums]]
) -> Iterator[Metric]:
    count = CounterMetricFamily(f"{prefix}_{counted}", f"Number of {what}.", labels=labels)
    seconds = CounterMetricFamily(f"{prefix}_seconds", f"Time of {what}, by part.", labels=[*labels, "part"])
    for values, one_sums in sums:
        count.add_metric(values, one_sums.count)
        for part in _PARTS:
            seconds.add_metric((*values, part), getattr(one_sums, f"{part}_s"))
    yield count
    yield seconds


def _of_points(points: Sequence[PointMetrics]) -> Iterator[Metric]:
    """The readout is a point of the name ``readout``."""
    rows = CounterMetricFamily("braid_point_rows", "Rows that went through a fusion point.", labels=["point"])
    entropy = GaugeMetricFamily(
        "braid_point_entropy", "Entropy of the shards' weights in nats, running mean.", labels=["point"]
    )
    by_shard = {
        kind: GaugeMetricFamily(f"braid_point_{kind}", about, labels=["point", "shard"])
        for kind, about in (
            ("weight", "A shard's share in the fused state, running mean."),
            ("gate", "How far a receiving shard's gate is open, running mean."),
            ("update", "Size of the update relative to the receiver's state, running mean."),
        )
    }
    for point in points:
        rows.add_metric([point.point], point.rows)
        for name, value in point.mean.items():
            kind, _, shard = name.partition("/")
            if name in ("router_entropy", "weight_entropy"):
                entropy.add_metric([point.point], value)
            elif shard and kind in by_shard:
                by_shard[kind].add_metric([point.point, shard], value)
    yield from (rows, entropy, *by_shard.values())


def _store(answers: bool | None) -> Metric:
    family = GaugeMetricFamily("braid_state_store_up", "1 while the shared state store answers.")
    if answers is not None:
        family.add_metric([], float(answers))
    return family


def _labelled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def _histogram(name: str, about: str, values: Distribution) -> Metric:
    totals = [*accumulate(list(values.counts))]
    bounds = [*(str(float(bound)) for bound in values.bounds), "+Inf"]
    return HistogramMetricFamily(
        name, about, buckets=[*zip(bounds, totals, strict=True)], sum_value=values.sum
    )
