"""How a `BraidError` travels: as status and trailing metadata of a call, or as an `Error` within a stream.

The message goes into the status' details; the class and the retry time into two metadata keys, so that a
client in any language can read them. Which class has which status stands in `errors`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import grpc

from braid_rpc.errors import BraidError, FrameError, error_from_wire
from braid_rpc.v1 import tensor_pb2

ERROR_TYPE_KEY = "braid-error-type"
RETRY_AFTER_KEY = "braid-retry-after-s"

# Details travel in a header block, percent-encoded, and peers refuse blocks beyond 8 KiB.
MAX_DETAIL_BYTES = 2000

# What gRPC itself says of a message beyond its limit, with the status of a lack of room, which passes; this doesn't.
_TOO_LARGE = "message larger than max"
_WHICH_IS_TOO_LARGE = re.compile(rf"(CLIENT|SERVER): (Received|Sent) {_TOO_LARGE}")
_HOW_LARGE = re.compile(rf"{_TOO_LARGE} \((\d+) vs\. (\d+)\)")


def error_to_status(error: BraidError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Code, details and trailing metadata that say the same as ``error``."""
    metadata = [(ERROR_TYPE_KEY, type(error).__name__)]
    if error.retry_after_s > 0:
        metadata.append((RETRY_AFTER_KEY, f"{error.retry_after_s:.3f}"))
    return grpc.StatusCode[error.grpc_status], _clip(error.message), tuple(metadata)


def error_from_rpc(error: grpc.RpcError) -> BraidError:
    """The error that a failed call reports, in the class that the server raised where it says so."""
    code = error.code() if callable(getattr(error, "code", None)) else None
    details = error.details() if callable(getattr(error, "details", None)) else None
    trailing = error.trailing_metadata() if callable(getattr(error, "trailing_metadata", None)) else None
    return error_from_status(code.name if code is not None else "UNKNOWN", details or "", trailing or ())


def error_from_status(status: str, details: str, metadata: Iterable[Any]) -> BraidError:
    """The error that a status name, its details and trailing metadata stand for."""
    values = {str(item[0]): item[1] for item in metadata}
    message = details or f"the call ended with status {status}"
    if status == "RESOURCE_EXHAUSTED" and ERROR_TYPE_KEY not in values and _TOO_LARGE in details:
        return FrameError(_describe_too_large(details))
    return error_from_wire(
        _text(values.get(ERROR_TYPE_KEY, "")),
        status,
        message,
        _retry_time(_text(values.get(RETRY_AFTER_KEY, ""))),
    )


def error_to_proto(error: BraidError) -> tensor_pb2.Error:
    """The message for a reply within a stream that goes on."""
    return tensor_pb2.Error(
        type=type(error).__name__, message=error.message, retry_after_s=error.retry_after_s
    )


def error_from_proto(message: tensor_pb2.Error) -> BraidError:
    """The error that a reply within a stream carries."""
    return error_from_wire(message.type, "INTERNAL", message.message, _finite(message.retry_after_s))


def _describe_too_large(details: str) -> str:
    what, whose = "message", "the client's or the server's"
    which, numbers = _WHICH_IS_TOO_LARGE.search(details), _HOW_LARGE.search(details)
    if which is not None:
        whose = f"the {which[1].lower()}'s"
        what = "reply" if which.groups() in (("CLIENT", "Received"), ("SERVER", "Sent")) else "request"
    if numbers is None:
        return f"{details}: see {whose} max_message_bytes"
    return f"got a {what} of {numbers[1]} bytes, expected at most {numbers[2]}, {whose} max_message_bytes"


def _clip(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= MAX_DETAIL_BYTES:
        return text
    return encoded[: MAX_DETAIL_BYTES - 4].decode(errors="ignore") + " …"


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _retry_time(text: str) -> float:
    try:
        return _finite(float(text)) if text else 0.0
    except ValueError:
        return 0.0


def _finite(seconds: float) -> float:
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
