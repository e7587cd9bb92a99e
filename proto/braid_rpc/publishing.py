"""A version of the fusion weights on its way to a service: what it is cut into, and what comes of it.

Knows no connection, and not what the weights mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from braid_rpc.errors import InvalidRequestError
from braid_rpc.v1 import fusion_pb2

MAX_CARD_BYTES = 2**20
"""Of a version's card: it is listed together with all others."""
CHUNK_BYTES = 2**20
# How much longer a call may take for each megabyte that is to be sent and written.
_SECONDS_PER_MIB = 1.0

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far and all there are to send, from a thread of the connection's; must not raise."""


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A version that a service has taken in.

    ``active_version`` is the one that new sessions get afterwards. ``in_memory_only``: there is no folder to keep it
    in, so it is gone when the process ends.
    """

    version: str
    active_version: str
    in_memory_only: bool


def publish_header(card_json: str, data: bytes, version: str, activate: bool) -> fusion_pb2.PublishHeader:
    """What goes before the weights. Raises: as `check_card`."""
    check_card(card_json)
    return fusion_pb2.PublishHeader(
        version=version,
        card_json=card_json,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        activate=activate,
    )


def check_card(card_json: str) -> None:
    """Raises: InvalidRequestError for a card of more than `MAX_CARD_BYTES`, or that is no text."""
    try:
        num_bytes = len(card_json.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"card: got text that is not Unicode: {error.reason}") from error
    if num_bytes > MAX_CARD_BYTES:
        raise InvalidRequestError(f"card: got {num_bytes} bytes, expected at most {MAX_CARD_BYTES}")


def publish_parts(
    header: fusion_pb2.PublishHeader, data: bytes, chunk_bytes: int, on_progress: Progress | None = None
) -> Iterator[fusion_pb2.PublishPart]:
    """The header, then the weights in order, at most ``chunk_bytes`` in each part."""
    yield fusion_pb2.PublishPart(header=header)
    for start in range(0, len(data), chunk_bytes):
        chunk = data[start : start + chunk_bytes]
        yield fusion_pb2.PublishPart(data=chunk)
        if on_progress is not None:
            on_progress(start + len(chunk), len(data))


def publish_timeout_s(timeout_s: float, num_bytes: int) -> float:
    """Seconds for a call that sends so much, where another one may take ``timeout_s``."""
    return timeout_s + num_bytes / 2**20 * _SECONDS_PER_MIB
