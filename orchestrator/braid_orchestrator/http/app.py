"""The application: all routes, one shape of error, a bound on what a request may weigh."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from braid_orchestrator.http.chat import chat_routes
from braid_orchestrator.http.completions import completion_routes
from braid_orchestrator.http.errors import install_error_handlers
from braid_orchestrator.http.native import native_routes
from braid_orchestrator.http.operations import operation_routes
from braid_orchestrator.http.tokenizing import tokenizing_routes
from braid_orchestrator.serving.port import BraidPort

_ABOUT = """Several language models run in lock step, exchange hidden states, and answer as one.

`POST /generate` tells all there is to tell (each shard's weight in every token, timings); `/v1/completions`
and `/v1/chat/completions` speak what other completion services speak. Errors are
`{"error": {"message", "type", "param", "code"}}`.
"""
MAX_BODY_BYTES = 16 * 2**20


def create_app(
    get_service: Callable[[], BraidPort],
    render_metrics: Callable[[], bytes],
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The HTTP API over ``get_service()``, which may raise UnavailableError while there is none yet.

    ``render_metrics`` gives what `/metrics` shows (`metrics.MeteredService` has both).
    """
    app = FastAPI(title="Braid", version="1", description=_ABOUT, redirect_slashes=False)
    install_error_handlers(app)
    app.include_router(native_routes(get_service))
    app.include_router(completion_routes(get_service))
    app.include_router(chat_routes(get_service))
    app.include_router(tokenizing_routes(get_service))
    app.include_router(operation_routes(get_service, render_metrics))
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    return app


class BodyLimit:
    """Refuses a request's body as soon as it is larger than allowed, before it fills the memory."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, f"body: got more bytes than the {self._max_bytes} that are allowed")
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)
