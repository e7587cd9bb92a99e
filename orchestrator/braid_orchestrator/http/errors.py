"""Errors as HTTP answers: ``{"error": {"message", "type", "param", "code"}}`` with the right status.

The status of a `BraidError` stands in `braid_rpc.errors`; of an unexpected failure only an id
reaches a user.
"""

from __future__ import annotations

import logging
import math
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from braid_orchestrator.config.messages import show
from braid_rpc.errors import AuthenticationError, BraidError, InvalidRequestError

_log = logging.getLogger(__name__)


def error_body(error: BraidError) -> dict[str, Any]:
    """The JSON of an error, the same in a response and inside an event stream."""
    parameter, found, _ = error.message.partition(":")
    names_field = isinstance(error, InvalidRequestError) and bool(found) and " " not in parameter
    body: dict[str, Any] = {
        "message": error.message,
        "type": type(error).__name__,
        "param": parameter if names_field else None,
        "code": error.http_status,
    }
    if error.retry_after_s > 0:
        body["retry_after_s"] = error.retry_after_s
    return {"error": body}


def error_response(error: BraidError) -> JSONResponse:
    """The answer to a request that failed; says when to come back if the error knows."""
    headers: dict[str, str] = {}
    if error.retry_after_s > 0:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_code=error.http_status, headers=headers)


def internal_error(error: Exception) -> BraidError:
    """What a user is told of a failure that nobody foresaw; the log has the rest under the same id."""
    incident = uuid.uuid4().hex[:12]
    _log.error("internal error %s", incident, exc_info=error)
    return BraidError(f"internal error; the service's log says more under {incident}")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every kind of failure in the one shape."""

    @app.exception_handler(BraidError)
    async def _braid_error(request: Request, error: BraidError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(InvalidRequestError(_explain(error)))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, ValueError | RecursionError):
            return error_response(InvalidRequestError(_unreadable(error.__cause__)))
        message = f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is"
        body = {"message": message, "type": "HTTPError", "param": None, "code": error.status_code}
        return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        return error_response(internal_error(error))


def _unreadable(cause: Exception) -> str:
    """Why a body is no JSON, where that has to do with its bytes or its depth."""
    if isinstance(cause, UnicodeDecodeError):
        return f"body: got bytes that are not UTF-8 at {cause.start}, expected JSON in UTF-8"
    if isinstance(cause, RecursionError):
        return "body: got JSON that is nested too deeply"
    return f"body: got what is no JSON: {str(cause)[:200]}"


def _explain(error: RequestValidationError) -> str:
    """Every finding as ``field: got …, expected …``, in one line."""
    lines = []
    for detail in error.errors():
        location = [part for part in detail["loc"] if part not in ("body", "query", "path")]
        field = ".".join(str(part) for part in location) or "body"
        if detail["type"] == "extra_forbidden":
            lines.append(f"{field}: unknown field; /docs lists what is accepted")
        elif detail["type"] == "missing":
            lines.append(f"{field}: missing, expected a value")
        elif detail["type"] == "json_invalid":
            lines.append(f"body: not valid JSON: {detail.get('ctx', {}).get('error', detail['msg'])}")
        else:
            expected = detail["msg"].removeprefix("Input should be ")
            lines.append(f"{field}: got {show(detail.get('input'))}, expected {expected}")
    return "; ".join(dict.fromkeys(lines))
