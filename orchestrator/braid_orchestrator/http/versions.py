"""Versions of the fusion weights: which one new requests get, another one for them, and taking in new ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from braid_orchestrator.http.native_schemas import (
    ERROR_RESPONSES,
    ActiveVersionOut,
    ErrorOut,
    PublishedOut,
    VersionBody,
)
from braid_orchestrator.serving.port import BraidPort
from braid_rpc.errors import CapacityError
from braid_rpc.publishing import MAX_CARD_BYTES
from braid_rpc.version_archive import ENVELOPE_BYTES, read_archive

PUBLISH_PATH = "/v1/fusion/versions"
_MAX_BODIES = 2  # at a time: each is in memory
_ARCHIVE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "a plain tar of a version's card.json and weights.safetensors",
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def max_publish_body_bytes(service: BraidPort) -> int:
    """What the body of a request that publishes may have."""
    return service.max_publish_bytes + MAX_CARD_BYTES + ENVELOPE_BYTES


def version_routes(get_service: Callable[[], BraidPort]) -> APIRouter:
    """The routes over whichever service there is at the time of a request."""
    router = APIRouter(tags=["operations"], responses=ERROR_RESPONSES)
    bodies = asyncio.Semaphore(_MAX_BODIES)

    @router.get("/v1/fusion/versions/active", response_model=ActiveVersionOut)
    async def active_version() -> ActiveVersionOut:
        """The version of the fusion weights that new requests get, and what another one has to fit."""
        service = get_service()
        return ActiveVersionOut(
            active=service.describe().weights_version,
            max_publish_bytes=service.max_publish_bytes,
            plan=json.loads(service.plan.to_json()),
        )

    @router.post("/v1/fusion/versions/activate")
    async def activate_version(body: VersionBody) -> dict[str, str]:
        """Use another version for requests from now on; running ones keep theirs."""
        return {"active": await get_service().activate(body.version)}

    @router.post(
        PUBLISH_PATH,
        response_model=PublishedOut,
        responses={507: {"model": ErrorOut, "description": "the weights could not be written"}},
        openapi_extra=_ARCHIVE,
    )
    async def publish_version(
        request: Request,
        version: Annotated[
            str, Query(description="its name; empty: one that the same weights get again")
        ] = "",
        activate: Annotated[bool, Query(description="use it for requests from now on")] = True,
    ) -> PublishedOut:
        """Take in a new version: whole or not at all; the same again is harmless."""
        service = get_service()
        if bodies.locked():
            raise CapacityError(
                f"publish: {_MAX_BODIES} versions are coming in, expected fewer", retry_after_s=1.0
            )
        async with bodies:
            card_json, data = await asyncio.to_thread(read_archive, await request.body())
            published = await service.publish(card_json, data, version, activate=activate)
        return PublishedOut(
            version=published.version,
            active=published.active_version,
            in_memory_only=published.in_memory_only,
        )

    return router
