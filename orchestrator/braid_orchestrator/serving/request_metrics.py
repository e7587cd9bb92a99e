"""What is counted of requests as their events pass, as Prometheus metrics. What the engine counts by itself is in
`engine_metrics`.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram

from braid_orchestrator.engine.requests import ChoiceFinished, Event, Finished, Started, TokenEvent

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


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
        self.queue_seconds = Histogram(
            "braid_request_queue_seconds",
            "From a request's arrival to its admission.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.mean_time_per_output_token = Histogram(
            "braid_request_time_per_output_token_seconds",
            "Per finished choice: time after its first token, divided by the tokens after it.",
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self.request_prompt_tokens = Histogram(
            "braid_request_prompt_tokens",
            "Prompt tokens of a request.",
            buckets=_TOKENS,
            registry=self.registry,
        )
        self.request_completion_tokens = Histogram(
            "braid_request_completion_tokens",
            "Tokens made for a finished request.",
            buckets=_TOKENS,
            registry=self.registry,
        )
        self.http_requests = Counter(
            "braid_http_requests",
            "Responses, by route, method and status.",
            ["route", "method", "status"],
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
        self.answerers = Counter(
            "braid_answerers",
            "Requests by who answers, the braid or one shard alone, and by what said so.",
            ["answered_by", "said_by"],
            registry=self.registry,
        )
        self.shard_weight = Counter(
            "braid_shard_weight",
            "Sum over tokens of each shard's mixing weight.",
            ["shard"],
            registry=self.registry,
        )


class GenerationMeter:
    """Observes one request's events as they pass."""

    def __init__(self, metrics: ServiceMetrics) -> None:
        self._metrics = metrics
        self._began_s = time.perf_counter()
        self._first_s: dict[int, float] = {}
        self._last_s: dict[int, float] = {}
        self._num_tokens: dict[int, int] = {}

    def note(self, event: Event) -> None:
        """The next event has come."""
        metrics, now_s = self._metrics, time.perf_counter()
        match event:
            case Started():
                metrics.queue_seconds.observe(now_s - self._began_s)
                metrics.prompt_tokens.inc(event.prompt_tokens)
                metrics.request_prompt_tokens.observe(event.prompt_tokens)
            case TokenEvent():
                self._note_token(event, now_s)
            case ChoiceFinished():
                metrics.finish_reasons.labels(event.finish_reason).inc()
                later_tokens = self._num_tokens.get(event.index, 0) - 1
                if later_tokens > 0:
                    seconds = self._last_s[event.index] - self._first_s[event.index]
                    metrics.mean_time_per_output_token.observe(seconds / later_tokens)
            case Finished():
                metrics.request_completion_tokens.observe(event.completion_tokens)

    def _note_token(self, event: TokenEvent, now_s: float) -> None:
        metrics, index = self._metrics, event.index
        metrics.completion_tokens.inc()
        if index in self._last_s:
            metrics.time_per_output_token.observe(now_s - self._last_s[index])
        else:
            if not self._last_s:
                metrics.time_to_first_token.observe(now_s - self._began_s)
            self._first_s[index] = now_s
        self._last_s[index] = now_s
        self._num_tokens[index] = self._num_tokens.get(index, 0) + 1
        for shard, weight in event.weights.items():
            metrics.shard_weight.labels(shard).inc(weight)
