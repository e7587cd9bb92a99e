"""Counts responses by route, method and status. Stands outside of everything that may refuse a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Called with a route's path (not a request's: there are many of those), the method and the status.
CountResponse = Callable[[str, str, int], None]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
# Nobody was there any more to be answered; as proxies log it.
HUNG_UP = 499


class ResponseCounter:
    """Tells ``count`` of every response. ``routes`` are all that there are."""

    def __init__(self, app: ASGIApp, count: CountResponse, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._count = count
        found = [route for route in routes if isinstance(route, Route)]
        self._plain = frozenset(route.path for route in found if not route.param_convertors)
        self._patterns = [(route.path_regex, route.path) for route in found if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = HUNG_UP

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self._count(self._route(scope["path"]), method, status)

    def _route(self, path: str) -> str:
        """By the path alone: what is refused never gets to a route."""
        if path in self._plain:
            return path
        return next((pattern for regex, pattern in self._patterns if regex.match(path)), OTHER)
