"""The application: all routes, one shape of error, a bound on what a request may weigh."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from fastapi import FastAPI

from braid_orchestrator.http.chat import chat_routes
from braid_orchestrator.http.completions import completion_routes
from braid_orchestrator.http.counting import CountResponse, ResponseCounter
from braid_orchestrator.http.errors import install_error_handlers
from braid_orchestrator.http.guard import ApiKeyGuard, BodyLimit
from braid_orchestrator.http.limiting import RateLimit
from braid_orchestrator.http.native import native_routes
from braid_orchestrator.http.operations import operation_routes
from braid_orchestrator.http.request_ids import RequestIds
from braid_orchestrator.http.resuming import resuming_routes
from braid_orchestrator.http.tokenizing import tokenizing_routes
from braid_orchestrator.http.versions import PUBLISH_PATH, max_publish_body_bytes, version_routes
from braid_orchestrator.serving.api_keys import ApiKeys
from braid_orchestrator.serving.port import BraidPort

_ABOUT = """Several language models run in lock step, exchange hidden states, and answer as one.

`POST /generate` tells all there is to tell (each shard's weight in every token, timings); `/v1/completions`
and `/v1/chat/completions` speak what other completion services speak. Errors are
`{"error": {"message", "type", "param", "code"}}`.
"""
MAX_BODY_BYTES = 16 * 2**20
# How long a request's body may keep the service waiting for its next part.
BODY_PATIENCE_S = 30.0


def create_app(
    get_service: Callable[[], BraidPort],
    render_metrics: Callable[[], bytes],
    max_body_bytes: int = MAX_BODY_BYTES,
    body_patience_s: float = BODY_PATIENCE_S,
    get_keys: Callable[[], ApiKeys | None] = lambda: None,
    count_response: CountResponse = lambda route, method, status: None,
) -> FastAPI:
    """The HTTP API over ``get_service()``, which may raise UnavailableError while there is none yet.

    ``render_metrics`` gives what `/metrics` shows, ``count_response`` is told of every response
    (`metrics.MeteredService` has all three). With the keys that
    ``get_keys`` gives, every route but those of `guard.OPEN_PATHS` asks for one; with None, none does.
    """
    app = FastAPI(title="Braid", version="1", description=_ABOUT, redirect_slashes=False)
    install_error_handlers(app)
    routers = [
        native_routes(get_service),
        completion_routes(get_service),
        chat_routes(get_service),
        tokenizing_routes(get_service),
        operation_routes(get_service, render_metrics),
        version_routes(get_service),
        resuming_routes(get_service),
    ]
    routes = [*app.routes, *chain.from_iterable(router.routes for router in routers)]
    for router in routers:
        app.include_router(router)
    larger = {PUBLISH_PATH: lambda: max_publish_body_bytes(get_service())}
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes, patience_s=body_patience_s, larger=larger)
    app.add_middleware(RateLimit, get_service=get_service, get_keys=get_keys)
    # What is added last stands first: nothing of a request is read before its key is, and all are counted.
    app.add_middleware(ApiKeyGuard, get_keys=get_keys)
    app.add_middleware(RequestIds)
    app.add_middleware(ResponseCounter, count=count_response, routes=routes)
    return app
