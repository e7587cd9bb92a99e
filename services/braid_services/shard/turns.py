"""Who may compute on a shard's model, and when: those who are served first, then training, for a share of the time.

Knows no model. Torch uses all its threads for one call at a time, so turns share out the whole processor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

# For so long after somebody was served, training keeps to its share.
SERVED_LATELY_S = 1.0
_YIELD_S = 0.0005
_NAP_S = 0.02


class ComputeLock:
    """One holder at a time. ``with lock:`` goes before every `background` that has not begun."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._num_waiting = 0
        self._clock = clock
        self._last_left_s = -float("inf")

    def __enter__(self) -> None:
        if self._lock.acquire(blocking=False):
            return
        with self._counting:
            self._num_waiting += 1
        try:
            self._lock.acquire()
        finally:
            with self._counting:
                self._num_waiting -= 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last_left_s = self._clock()
        self._lock.release()

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._lock.locked()

    def was_left_since(self, moment_s: float) -> bool:
        """Whether it is held, waited for, or was left after that moment, by anyone but the background."""
        return self._num_waiting > 0 or self._last_left_s > moment_s

    @contextmanager
    def background(self) -> Iterator[None]:
        """Hold it as soon as nobody else wants it."""
        while True:
            self._lock.acquire()
            if not self._num_waiting:
                break
            self._lock.release()
            time.sleep(_YIELD_S)
        try:
            yield
        finally:
            self._lock.release()


class TrainingTurns:
    """Turns for training: one at a time, behind everybody who is served, and while anybody is, rests between them
    so that they take at most ``share`` of the time. A turn that is under way is not interrupted."""

    def __init__(
        self,
        lock: ComputeLock,
        share: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``share`` in (0, 1]."""
        self._lock = lock
        self._rest_per_second = (1.0 - share) / share
        self._clock = clock
        self._sleep = sleep
        self._one = threading.Lock()
        self._rest_until_s = -float("inf")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it for as long as the block runs."""
        with self._one:
            self._rest()
            with self._lock.background():
                began_s = self._clock()
                try:
                    yield
                finally:
                    ended_s = self._clock()
                    self._rest_until_s = ended_s + (ended_s - began_s) * self._rest_per_second

    def _rest(self) -> None:
        while True:
            now_s = self._clock()
            left_s = self._rest_until_s - now_s
            if left_s <= 0 or not self._lock.was_left_since(now_s - SERVED_LATELY_S):
                return
            self._sleep(min(left_s, _NAP_S))
