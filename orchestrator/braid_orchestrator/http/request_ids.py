"""Each request has an id, the client's `X-Request-Id` if it sent one: in the response, in logs, and to cancel by."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from braid_orchestrator.http.errors import error_response
from braid_orchestrator.serving.calls import begin_call, end_call, is_header_safe, new_call
from braid_rpc.errors import InvalidRequestError

HEADER = "X-Request-Id"


class RequestIds:
    """Makes the call that `serving.calls.current_call` gives, and sends its id back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        try:
            call = new_call(Headers(scope=scope).get(HEADER), scope["path"], str(client[0]) if client else "")
        except InvalidRequestError as error:
            await error_response(error)(scope, receive, send)
            return

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and is_header_safe(call.request_id):
                MutableHeaders(scope=message)[HEADER] = call.request_id
            await send(message)

        token = begin_call(call)
        try:
            await self._app(scope, receive, with_id)
        finally:
            end_call(token)
