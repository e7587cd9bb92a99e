"""What operators watch: a registry of Prometheus metrics, and a braid that fills it as it answers.

Names follow what other completion services use; all begin with ``braid_``. Every request that has ended leaves a line
in the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from prometheus_client import generate_latest

from braid_orchestrator.engine.requests import (
    Event,
    GenerateRequest,
    ScoreRequest,
    ScoreResult,
)
from braid_orchestrator.serving.calls import current_call
from braid_orchestrator.serving.engine_metrics import EngineMetrics
from braid_orchestrator.serving.model_selection import answered_by
from braid_orchestrator.serving.port import BraidPort, as_generator
from braid_orchestrator.serving.request_log import RequestLog
from braid_orchestrator.serving.request_metrics import GenerationMeter, ServiceMetrics
from braid_rpc.errors import BraidError
from braid_rpc.publishing import PublishedVersion

if TYPE_CHECKING:
    from braid_fusion.plan import BraidPlan
    from braid_orchestrator.deciding import AskedT
    from braid_orchestrator.engine.engine import EngineStats
    from braid_orchestrator.engine.ports import PointMetrics
    from braid_orchestrator.serving.service import BraidDescription
    from braid_orchestrator.serving.shard_text import ShardText

_log = logging.getLogger(__name__)


class MeteredService:
    """A braid that counts what passes through it; the same to its callers."""

    def __init__(self, service: BraidPort) -> None:
        self._service = service
        self._metrics = ServiceMetrics()
        self._metrics.registry.register(EngineMetrics(service))

    def render_metrics(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._metrics.registry)

    def count_response(self, route: str, method: str, status: int) -> None:
        """A response was sent, over HTTP."""
        self._metrics.http_requests.labels(route, method, str(status)).inc()

    @property
    def name(self) -> str:
        """The braid's name."""
        return self._service.name

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """As `BraidPort.generate`."""
        metrics = self._metrics
        meter = GenerationMeter(metrics)
        log = self._log("generate", request)
        began = time.perf_counter()
        outcome, failure = "cancelled", None
        try:
            async with aclosing(as_generator(self._service.generate(request))) as events:
                async for event in events:
                    meter.note(event)
                    log.note(event)
                    yield event
            outcome = "finished"
        except BraidError as error:
            outcome, failure = type(error).__name__, error
            raise
        finally:
            metrics.request_seconds.labels("generate", outcome).observe(time.perf_counter() - began)
            log.write(outcome, failure)

    async def decide(self, request: AskedT) -> AskedT:
        """As `BraidPort.decide`. Every request passes here once before it is answered."""
        operation = "generate" if isinstance(request, GenerateRequest) else "score"
        log = self._log(operation, request)
        began = time.perf_counter()
        try:
            decided = await self._service.decide(request)
        except BraidError as error:
            # It ends here: nobody is asked to answer it.
            outcome = type(error).__name__
            self._metrics.request_seconds.labels(operation, outcome).observe(time.perf_counter() - began)
            log.write(outcome, error)
            raise
        description = self.describe()
        who = answered_by(decided, braid=description.name, anchor=description.anchor)
        asked = request.use_braiding
        said_by = "request" if isinstance(asked, bool) else asked or "default"
        # A shard that the request made up is refused later, and must not leave a label of its own for ever.
        if who == description.name or who in [shard.name for shard in description.shards]:
            self._metrics.answerers.labels(who, said_by).inc()
        return decided

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """As `BraidPort.score`."""
        log = self._log("score", request)
        began = time.perf_counter()
        outcome, failure = "cancelled", None
        try:
            result = await self._service.score(request)
            outcome = "finished"
            self._metrics.prompt_tokens.inc(len(result.token_ids))
            log.note_score(len(result.token_ids))
            return result
        except BraidError as error:
            outcome, failure = type(error).__name__, error
            raise
        finally:
            self._metrics.request_seconds.labels("score", outcome).observe(time.perf_counter() - began)
            log.write(outcome, failure)

    def _log(self, operation: str, request: GenerateRequest | ScoreRequest) -> RequestLog:
        asked = request.shard or self.describe().anchor
        model = asked if request.use_braiding is False else self.name
        return RequestLog(operation, model, current_call())

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
        active = await self._service.activate(version)
        _log.info("fusion version activated", extra={"weights_version": active})
        return active

    @property
    def plan(self) -> BraidPlan:
        """As `BraidPort.plan`."""
        return self._service.plan

    @property
    def max_publish_bytes(self) -> int:
        """As `BraidPort.max_publish_bytes`."""
        return self._service.max_publish_bytes

    async def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """As `BraidPort.publish`."""
        published = await self._service.publish(card_json, data, version, activate=activate)
        _log.info(
            "fusion version published",
            extra={"version": published.version, "weights_version": published.active_version},
        )
        return published

    async def admit(self, caller: str) -> None:
        """As `BraidPort.admit`."""
        try:
            await self._service.admit(caller)
        except BraidError as error:
            call = current_call()
            _log.info(
                "request refused",
                extra={
                    "request_id": call.request_id,
                    "route": call.route or None,
                    "client": call.client or None,
                    "error": type(error).__name__,
                },
            )
            raise

    async def resume(self, request_id: str) -> tuple[GenerateRequest, AsyncGenerator[Event, None]]:
        """As `BraidPort.resume`."""
        return await self._service.resume(request_id)

    async def orphans(self) -> list[str]:
        """As `BraidPort.orphans`."""
        return await self._service.orphans()

    def stats(self) -> EngineStats:
        """As `BraidPort.stats`."""
        return self._service.stats()

    def point_metrics(self) -> Sequence[PointMetrics]:
        """As `BraidPort.point_metrics`."""
        return self._service.point_metrics()

    def store_answers(self) -> bool | None:
        """As `BraidPort.store_answers`."""
        return self._service.store_answers()
