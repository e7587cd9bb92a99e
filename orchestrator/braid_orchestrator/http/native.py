"""The native API: `/generate`, `/score`, `/cancel`, `/describe`, with what only a braid has to tell."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response

from braid_orchestrator.engine.requests import Event, GenerateRequest, ScoreRequest, UseBraiding
from braid_orchestrator.http.answers import answer, event_data
from braid_orchestrator.http.collecting import collect, finite
from braid_orchestrator.http.errors import error_body, internal_error
from braid_orchestrator.http.native_schemas import (
    ERROR_RESPONSES,
    STREAM_RESPONSES,
    CancelBody,
    GenerateBody,
    GenerateOut,
    ModelFields,
    ScoreBody,
    ScoreOut,
)
from braid_orchestrator.http.streaming import EventStream, first_of, sse, unless_hung_up
from braid_orchestrator.serving.calls import current_call
from braid_orchestrator.serving.model_selection import answered_by, select_model
from braid_orchestrator.serving.port import BraidPort, as_generator
from braid_rpc.errors import BraidError


def native_routes(get_service: Callable[[], BraidPort]) -> APIRouter:
    """The routes over whichever service there is at the time of a request."""
    router = APIRouter(tags=["braid"], responses=ERROR_RESPONSES)

    @router.post(
        "/generate", response_model=GenerateOut, responses=STREAM_RESPONSES, response_model_exclude_unset=True
    )
    async def generate(body: GenerateBody, http: Request) -> Response | GenerateOut:
        """Go on with a prompt. Streamed: `started`, `token`s, `choice_finished`, `finished` or `error`."""
        service = get_service()
        use_braiding, shard = _select(body, service)
        request = body.request(use_braiding, shard, current_call().name_request(body.request_id))
        request.validate()
        request = await service.decide(request)
        events = as_generator(service.generate(request))
        if not body.stream:
            collected = await unless_hung_up(http, collect(events, request.n))
            return answer(collected, _who(request, service), braided=request.use_braiding is True)
        first = await first_of(http, events)
        return EventStream(stream_events(first, events, request, service), [events])

    @router.post("/score", response_model=ScoreOut)
    async def score(body: ScoreBody, http: Request) -> ScoreOut:
        """Log-probabilities of a given text, token by token, and its bits per byte."""
        service = get_service()
        use_braiding, shard = _select(body, service)
        request = body.request(use_braiding, shard)
        request.validate()
        request = await service.decide(request)
        result = await unless_hung_up(http, service.score(request))
        who = _who(request, service)
        total = finite(math.fsum(result.logprobs))
        return ScoreOut(
            model=who,
            braided=request.use_braiding is True,
            answered_by=who,
            token_ids=list(result.token_ids),
            tokens=list(result.tokens),
            logprobs=[finite(logprob) for logprob in result.logprobs],
            num_bytes=result.num_bytes,
            total_logprob=total,
            bits_per_byte=-total / math.log(2) / result.num_bytes
            if total is not None and result.num_bytes
            else None,
        )

    @router.post("/cancel")
    async def cancel(body: CancelBody) -> dict[str, bool]:
        """End a running request by its id; false if there is none."""
        return {"cancelled": get_service().cancel(body.request_id)}

    @router.get("/describe")
    async def describe() -> dict[str, Any]:
        """What the braid is made of: shards, fusion points, readout, the active version of the weights."""
        return asdict(get_service().describe())

    return router


def _select(body: ModelFields, service: BraidPort) -> tuple[UseBraiding, str | None]:
    shards = [shard.name for shard in service.describe().shards]
    return select_model(body.model, body.use_braiding, body.shard, braid=service.name, shards=shards)


def _who(request: GenerateRequest | ScoreRequest, service: BraidPort) -> str:
    return answered_by(request, braid=service.name, anchor=service.describe().anchor)


async def stream_events(
    first: Event, events: AsyncGenerator[Event, None], request: GenerateRequest, service: BraidPort
) -> AsyncGenerator[bytes, None]:
    """A decided request's events as server-sent ones, ``first`` before the rest."""
    model, braided = _who(request, service), request.use_braiding is True
    yield _event(first, model, braided)
    try:
        async with aclosing(events):
            async for event in events:
                yield _event(event, model, braided)
    except BraidError as error:
        yield sse(error_body(error), "error")
    except Exception as error:  # noqa: BLE001  the status is already sent; the client must still be told
        yield sse(error_body(internal_error(error)), "error")


def _event(event: Event, model: str, braided: bool) -> bytes:
    name, data = event_data(event, model, braided=braided)
    return sse(data, name)
