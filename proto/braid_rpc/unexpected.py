"""What a caller is told of an error that nobody expected: a number, by which its traceback stands in the log."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping

from braid_rpc.errors import BraidError


def unexpected_error(
    error: Exception, logger: logging.Logger, place: str, extra: Mapping[str, object] | None = None
) -> BraidError:
    """Log an error with its traceback; returns what to tell instead, which shows nothing of the inside.

    Args:
        place: the call or stream in which it happened.
        extra: further fields of the log's line.
    """
    number = uuid.uuid4().hex[:8]
    logger.error("unexpected error %s in %s", number, place, exc_info=error, extra=extra)
    return BraidError(f"{place}: unexpected error, number {number} in the server's log")
