"""What operators watch: a registry of Prometheus metrics, and a braid that fills it as it answers.

Names follow what other completion services use; all begin with ``braid_``. Gauges are read when scraped.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    GenerateRequest,
    ScoreRequest,
    ScoreResult,
    Started,
    TokenEvent,
)
from braid_orchestrator.serving.port import BraidPort, as_generator
from braid_rpc.errors import BraidError

if TYPE_CHECKING:
    from braid_orchestrator.engine.engine import EngineStats
    from braid_orchestrator.serving.service import BraidDescription
    from braid_orchestrator.serving.shard_text import ShardText

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)


class ServiceMetrics:
    """One registry per service, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.time_to_first_token = Histogram(
            "braid_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.time_per_output_token = Histogram(
            "braid_time_per_output_token_seconds",
            "Between one token of a choice and the next.",
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "braid_request_seconds",
            "From a request's arrival to its end, by how it ended.",
            ["operation", "outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("braid_prompt_tokens", "Prompt tokens taken in.", registry=self.registry)
        self.completion_tokens = Counter("braid_completion_tokens", "Tokens made.", registry=self.registry)
        self.finish_reasons = Counter(
            "braid_choices_finished", "Choices completed, by reason.", ["reason"], registry=self.registry
        )
        self.shard_weight = Counter(
            "braid_shard_weight",
            "Sum over tokens of each shard's mixing weight.",
            ["shard"],
            registry=self.registry,
        )


class MeteredService:
    """A braid that counts what passes through it; the same to its callers."""

    def __init__(self, service: BraidPort) -> None:
        self._service = service
        self._metrics = ServiceMetrics()
        self._metrics.registry.register(_Gauges(service))

    def render_metrics(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._metrics.registry)

    @property
    def name(self) -> str:
        """The braid's name."""
        return self._service.name

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """As `BraidPort.generate`."""
        metrics = self._metrics
        began = time.perf_counter()
        last: dict[int, float] = {}
        outcome = "cancelled"
        try:
            async with aclosing(as_generator(self._service.generate(request))) as events:
                async for event in events:
                    now = time.perf_counter()
                    match event:
                        case Started():
                            metrics.prompt_tokens.inc(event.prompt_tokens)
                        case TokenEvent():
                            metrics.completion_tokens.inc()
                            if event.index in last:
                                metrics.time_per_output_token.observe(now - last[event.index])
                            elif not last:
                                metrics.time_to_first_token.observe(now - began)
                            last[event.index] = now
                            for shard, weight in event.weights.items():
                                metrics.shard_weight.labels(shard).inc(weight)
                        case ChoiceFinished():
                            metrics.finish_reasons.labels(event.finish_reason).inc()
                    yield event
            outcome = "finished"
        except BraidError as error:
            outcome = type(error).__name__
            raise
        finally:
            metrics.request_seconds.labels("generate", outcome).observe(time.perf_counter() - began)

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """As `BraidPort.score`."""
        began = time.perf_counter()
        outcome = "cancelled"
        try:
            result = await self._service.score(request)
            outcome = "finished"
            self._metrics.prompt_tokens.inc(len(result.token_ids))
            return result
        except BraidError as error:
            outcome = type(error).__name__
            raise
        finally:
            self._metrics.request_seconds.labels("score", outcome).observe(time.perf_counter() - began)

    def text(self, shard: str | None = None) -> ShardText:
        """As `BraidPort.text`."""
        return self._service.text(shard)

    def describe(self) -> BraidDescription:
        """As `BraidPort.describe`."""
        return self._service.describe()

    def cancel(self, request_id: str) -> bool:
        """As `BraidPort.cancel`."""
        return self._service.cancel(request_id)

    def ready(self) -> None:
        """As `BraidPort.ready`."""
        self._service.ready()

    async def activate(self, version: str) -> str:
        """As `BraidPort.activate`."""
        return await self._service.activate(version)

    async def admit(self, caller: str) -> None:
        """As `BraidPort.admit`."""
        await self._service.admit(caller)

    async def resume(self, request_id: str) -> tuple[GenerateRequest, AsyncGenerator[Event, None]]:
        """As `BraidPort.resume`."""
        return await self._service.resume(request_id)

    async def orphans(self) -> list[str]:
        """As `BraidPort.orphans`."""
        return await self._service.orphans()

    def stats(self) -> EngineStats:
        """As `BraidPort.stats`."""
        return self._service.stats()


class _Gauges(Collector):
    """Read when scraped: requests in hand and room in the caches."""

    def __init__(self, service: BraidPort) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        stats = self._service.stats()
        yield GaugeMetricFamily("braid_requests_running", "Requests being answered.", value=stats.running)
        yield GaugeMetricFamily("braid_requests_waiting", "Requests in the queue.", value=stats.waiting)
        for name, help_text, by_shard in (
            ("braid_cache_free_bytes", "Room left for keys and values.", stats.cache_bytes_free),
            ("braid_cache_total_bytes", "Room for keys and values.", stats.cache_bytes_total),
        ):
            family = GaugeMetricFamily(name, help_text, labels=["shard"])
            for shard, size in by_shard.items():
                family.add_metric([shard], size)
            yield family
