"""What operators and tools ask: is it alive, is it ready, what does it serve, how is it doing."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from braid_orchestrator.http.native_schemas import ERROR_RESPONSES
from braid_orchestrator.http.openai_schemas import ModelListOut, ModelOut
from braid_orchestrator.serving.port import BraidPort
from braid_rpc.cards import PROTOCOL_VERSION
from braid_rpc.errors import UnknownModelError


def operation_routes(get_service: Callable[[], BraidPort], render_metrics: Callable[[], bytes]) -> APIRouter:
    """The routes over whichever service there is at the time of a request."""
    router = APIRouter(tags=["operations"], responses=ERROR_RESPONSES)
    created = int(time.time())

    def models() -> list[ModelOut]:
        description = get_service().describe()
        parts = " + ".join(shard.name for shard in description.shards)
        braid = ModelOut(
            id=description.name, created=created, max_model_len=description.context_length, root=parts
        )
        return [
            braid,
            *(
                ModelOut(
                    id=shard.name, created=created, max_model_len=shard.context_length, root=shard.model_id
                )
                for shard in description.shards
            ),
        ]

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Alive: this process answers."""
        return {"status": "ok"}

    @router.get("/version")
    async def version() -> dict[str, str | int]:
        """The service's version, and that of its gRPC protocol."""
        return {"version": importlib.metadata.version("braid"), "protocol": PROTOCOL_VERSION}

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """Ready: every part of the braid answers; else 503 with the reason."""
        get_service().ready()
        return {"status": "ready"}

    @router.get("/metrics", response_class=PlainTextResponse)
    def scrape() -> Response:
        """Figures for Prometheus."""
        return Response(render_metrics(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models", response_model=ModelListOut)
    async def list_models() -> ModelListOut:
        """What may be asked for as ``model``: the braid, and each shard alone."""
        return ModelListOut(data=models())

    @router.get("/v1/models/{model}", response_model=ModelOut)
    async def show_model(model: str) -> ModelOut:
        """One of them."""
        known = models()
        for entry in known:
            if entry.id == model:
                return entry
        names = ", ".join(entry.id for entry in known)
        raise UnknownModelError(f"model: got {model!r}, expected one of: {names}")

    return router
