"""What stands before all routes: API keys, and bounds on the size of a body and on the time that it may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from braid_orchestrator.http.errors import error_response
from braid_orchestrator.serving.api_keys import ApiKeys
from braid_rpc.errors import BraidError

# What answers without a key: whether the process is alive says nothing about anything.
OPEN_PATHS = frozenset({"/health"})


class ApiKeyGuard:
    """Lets nothing pass without a key, whatever its path, except `OPEN_PATHS`."""

    def __init__(self, app: ASGIApp, get_keys: Callable[[], ApiKeys | None]) -> None:
        self._app = app
        self._get_keys = get_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "lifespan" and scope["path"] not in OPEN_PATHS:
            try:
                keys = self._get_keys()
                if keys is not None:
                    keys.check(_authorization(scope))
            except BraidError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _authorization(scope: Scope) -> str | None:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    return values[0].decode("latin-1") if len(values) == 1 else None


class BodyLimit:
    """Refuses a request's body as soon as it is larger than allowed, or when no more of it comes. ``larger`` says for
    some paths what their bodies may have, and is asked when one comes."""

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        patience_s: float,
        larger: Mapping[str, Callable[[], int]] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._larger = larger
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        received = _announced(scope) if scope["type"] == "http" else 0
        counted_so_far, complete = 0, False
        limit: int | None = None

        async def counted() -> Message:
            nonlocal counted_so_far, complete, limit
            if limit is None:
                limit = self._larger.get(scope["path"], lambda: self._max_bytes)()
            if max(received, counted_so_far) > limit:
                raise _too_large(max(received, counted_so_far), limit)
            if complete:  # what comes now is the end of the connection, and may take its time
                return await receive()
            try:
                async with asyncio.timeout(self._patience_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"body: got {counted_so_far} bytes and no more within {self._patience_s:g} s"
                ) from None
            counted_so_far += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if counted_so_far > limit:
                raise _too_large(counted_so_far, limit)
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)


def _too_large(size: int, limit: int) -> HTTPException:
    return HTTPException(413, f"body: got {size} bytes, expected at most {limit}")


def _announced(scope: Scope) -> int:
    """The length that the request's head promises; 0 if it says nothing."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
