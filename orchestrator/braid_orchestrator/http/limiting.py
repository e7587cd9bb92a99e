"""Counts a caller's requests before they are read. Knows callers by their API key where one is asked for, else by
their address."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from braid_orchestrator.http.errors import error_response
from braid_orchestrator.serving.api_keys import ApiKeys, caller
from braid_orchestrator.serving.port import BraidPort
from braid_rpc.errors import BraidError

# What makes models work.
LIMITED = ("/generate", "/score", "/v1/completions", "/v1/chat/completions", "/v1/requests/")


class RateLimit:
    """Refuses requests of callers who send too many, with 429 and a time to come back."""

    def __init__(
        self, app: ASGIApp, get_service: Callable[[], BraidPort], get_keys: Callable[[], ApiKeys | None]
    ) -> None:
        self._app = app
        self._get_service = get_service
        self._get_keys = get_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(LIMITED):
            try:
                has_keys = self._get_keys() is not None
                await self._get_service().admit(_caller(scope, has_keys))
            except BraidError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _caller(scope: Scope, has_keys: bool) -> str:
    client = scope.get("client")
    address = str(client[0]) if client else ""
    return caller(Headers(scope=scope).get("authorization"), address, has_keys=has_keys)
