"""Who may compute on a shard's model, and when: those who are served first, then training, for a share of the time.

Knows no model. Torch uses all its threads for one call at a time, so turns share out the whole processor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

# After somebody was served, training keeps to its share for so long,
SERVED_LATELY_S = 1.0
# or for so many times the pause before that, if this is longer.
PAUSES = 3.0
# A longer pause than this says nothing: serving has begun anew.
LONGEST_PAUSE_S = 10.0
# For so long a call lets others go before where they never leave a gap, in all its turns together.
LONGEST_WAIT_S = 1.0
_YIELD_S = 0.0005
_NAP_S = 0.02


def always_wanted() -> None:
    """Somebody waits for it still."""


class ComputeLock:
    """One holder at a time. ``with lock:`` goes before every `background` that has not begun."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._num_waiting = 0
        self._serves = False
        self._clock = clock
        self._last_left_s = -float("inf")
        self._pause_s = 0.0
        self._serving_until_s = -float("inf")

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
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
        self._lock.release()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The same for a computation that serves somebody, after which training keeps to its share for a while."""
        asked_s = self._clock()
        with self:
            pause_s = max(0.0, asked_s - self._last_left_s)
            self._pause_s = pause_s if pause_s <= LONGEST_PAUSE_S else 0.0
            self._serves = True
            try:
                yield
            finally:
                self._last_left_s = self._clock()
                # Steps come unevenly: behind a short pause, what a longer one has said still holds.
                until_s = self._last_left_s + max(SERVED_LATELY_S, PAUSES * self._pause_s)
                self._serving_until_s = max(self._serving_until_s, until_s)
                self._serves = False

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._lock.locked()

    def is_serving(self, moment_s: float) -> bool:
        """Whether anyone is served with it, waits for it, or was served lately as seen from that moment: so lately
        that, by the pauses between those who were, the next one may be on the way."""
        return self._serves or self._num_waiting > 0 or self._serving_until_s > moment_s

    @contextmanager
    def background(
        self, check_wanted: Callable[[], None] = always_wanted, longest_wait_s: float = LONGEST_WAIT_S
    ) -> Iterator[None]:
        """Hold it as soon as nobody else wants it, or after having let others go before for ``longest_wait_s``.

        ``check_wanted`` is called now and then while it waits, and may raise.
        """
        give_way_until_s = self._clock() + longest_wait_s
        while True:
            self._lock.acquire()
            if not self._num_waiting or self._clock() >= give_way_until_s:
                break
            self._lock.release()
            check_wanted()
            time.sleep(_YIELD_S)
        try:
            yield
        finally:
            self._lock.release()


class TrainingTurns:
    """Turns for training: one at a time, behind everybody who is served, and while anybody is, rests between them
    so that all of them together keep to their share of the time. A turn that is under way is not interrupted."""

    def __init__(
        self,
        lock: ComputeLock,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lock = lock
        self._clock = clock
        self._sleep = sleep
        self._one = threading.RLock()
        self._rest_until_s = -float("inf")

    @contextmanager
    def call(self) -> Iterator[None]:
        """Within the block all turns are this thread's, so that of two calls that take several turns each, the one
        need not be held half done while the other goes on. Who is served goes before each of them."""
        with self._one:
            yield

    @contextmanager
    def turn(
        self, share: float, check_wanted: Callable[[], None] = always_wanted, num_turns: int = 1
    ) -> Iterator[None]:
        """Wait for a turn, and have it for as long as the block runs.

        ``share`` in (0, 1]: of the time, that this turn and the rest after it leave to training. ``check_wanted`` is
        called now and then while it waits, and may raise. ``num_turns`` is how many its call takes.
        """
        with self._one:
            check_wanted()
            self._rest(check_wanted)
            with self._lock.background(check_wanted, LONGEST_WAIT_S / num_turns):
                began_s = self._clock()
                try:
                    yield
                finally:
                    ended_s = self._clock()
                    self._rest_until_s = ended_s + (ended_s - began_s) * (1.0 - share) / share

    def _rest(self, check_wanted: Callable[[], None]) -> None:
        while True:
            now_s = self._clock()
            left_s = self._rest_until_s - now_s
            if left_s <= 0 or not self._lock.is_serving(now_s):
                return
            self._sleep(min(left_s, _NAP_S))
            check_wanted()
