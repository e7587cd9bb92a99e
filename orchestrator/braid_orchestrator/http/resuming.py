"""Requests whose orchestrator died: which they are, and how another one carries them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from braid_orchestrator.http.answers import answer
from braid_orchestrator.http.collecting import collect
from braid_orchestrator.http.native import stream_events
from braid_orchestrator.http.native_schemas import ERROR_RESPONSES, STREAM_RESPONSES, GenerateOut
from braid_orchestrator.http.streaming import EventStream, first_of, unless_hung_up
from braid_orchestrator.serving.model_selection import answered_by
from braid_orchestrator.serving.port import BraidPort


def resuming_routes(get_service: Callable[[], BraidPort]) -> APIRouter:
    """The routes over whichever service there is at the time of a request."""
    router = APIRouter(prefix="/v1/requests", tags=["operations"], responses=ERROR_RESPONSES)

    @router.get("")
    async def orphans() -> dict[str, list[str]]:
        """The ids of requests whose orchestrator is gone, and that nobody carries on yet."""
        return {"orphaned": await get_service().orphans()}

    @router.post(
        "/{request_id}/resume",
        response_model=GenerateOut,
        response_model_exclude_unset=True,
        responses=STREAM_RESPONSES,
    )
    async def resume(request_id: str, http: Request, stream: bool = False) -> Any:
        """Carry one of them on. Answers as `/generate` would have: from the first token on."""
        service = get_service()
        request, events = await service.resume(request_id)
        if not stream:
            model = answered_by(request, braid=service.name, anchor=service.describe().anchor)
            collected = await unless_hung_up(http, collect(events, request.n))
            return answer(collected, model, braided=request.use_braiding is True)
        first = await first_of(http, events)
        response: Response = EventStream(stream_events(first, events, request, service), [events])
        return response

    return router
