"""How a client makes one unary call: timeout, metadata, typed errors, and repeating what is safe to repeat.

Which calls are safe is for the clients to say. Only `UnavailableError` is ever repeated: the server did not answer,
or said itself that trying again may help.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from braid_rpc.errors import BraidError, DeadlineError, UnavailableError
from braid_rpc.status import error_from_rpc

DEFAULT_TIMEOUT_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What all calls of one client have in common. ``retries`` counts the attempts after the first."""

    target: str
    timeout_s: float | None = DEFAULT_TIMEOUT_S
    retries: int = 0
    metadata: Metadata = ()

    def pauses(self) -> Iterator[float]:
        """How long to wait before each further attempt, in seconds; ends when there are no more."""
        pause_s = FIRST_PAUSE_S
        for _ in range(self.retries):
            yield pause_s
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class Clock:
    """What is left of a timeout that holds for all attempts together."""

    def __init__(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Seconds left, None if there is no limit; never below a millisecond."""
        return None if self._end is None else max(self._end - time.monotonic(), 1e-3)

    def allows(self, pause_s: float) -> bool:
        """Whether there is time for a pause and an attempt after it."""
        left_s = self.left_s()
        return left_s is None or pause_s < left_s


def call_unary(
    method: Any, request: Any, options: CallOptions, *, timeout_s: float | None = None, safe: bool = True
) -> Any:
    """Call ``method`` of a stub and return its reply.

    Args:
        timeout_s: for all attempts together; None takes that of ``options``.
        safe: whether the call may be repeated.

    Raises: the `BraidError` that the call ended with.
    """
    limit_s = options.timeout_s if timeout_s is None else timeout_s
    clock, pauses = Clock(limit_s), options.pauses()
    while True:
        try:
            return method(request, timeout=clock.left_s(), metadata=options.metadata)
        except grpc.RpcError as failure:
            error = describe_failure(failure, options.target, limit_s)
        pause_s = next_pause(error, pauses, clock) if safe else None
        if pause_s is None:
            raise error
        time.sleep(pause_s)


async def call_unary_async(
    method: Any, request: Any, options: CallOptions, *, timeout_s: float | None = None, safe: bool = True
) -> Any:
    """As `call_unary`, on an event loop, with a method of an asynchronous stub."""
    limit_s = options.timeout_s if timeout_s is None else timeout_s
    clock, pauses = Clock(limit_s), options.pauses()
    while True:
        try:
            return await method(request, timeout=clock.left_s(), metadata=options.metadata)
        except grpc.RpcError as failure:
            error = describe_failure(failure, options.target, limit_s)
        pause_s = next_pause(error, pauses, clock) if safe else None
        if pause_s is None:
            raise error
        await asyncio.sleep(pause_s)


def next_pause(error: BraidError, pauses: Iterator[float], clock: Clock) -> float | None:
    """How long to wait before trying again; None if it makes no sense or the time is up."""
    if not isinstance(error, UnavailableError):
        return None
    pause_s = next(pauses, None)
    if pause_s is None:
        return None
    pause_s = max(pause_s, error.retry_after_s)
    return pause_s if clock.allows(pause_s) else None


def describe_failure(failure: grpc.RpcError, target: str, timeout_s: float | None) -> BraidError:
    """The typed error of a failed call; where gRPC itself failed it, with the address and the timeout."""
    error = error_from_rpc(failure)
    if failure.trailing_metadata() and any(
        key == "braid-error-type" for key, _ in failure.trailing_metadata()
    ):
        return error
    if isinstance(error, DeadlineError) and timeout_s is not None:
        return DeadlineError(f"{target}: got no answer within {timeout_s:g} s")
    return type(error)(f"{target}: {error.message}", retry_after_s=error.retry_after_s)
