"""Ctrl-C as a wish to stop after the step at hand, so that a checkpoint can be made of whole steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopWish:
    """Whether somebody asked to stop."""

    asked: bool = False


@contextmanager
def stop_on_interrupt(enabled: bool) -> Iterator[StopWish]:
    """Within, the first SIGINT only sets the wish; a second one is a KeyboardInterrupt as ever.

    Signals reach the main thread only; elsewhere, or where not ``enabled``, nothing changes.
    """
    wish = StopWish()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL  # None: set outside of Python

    def note(number: int, frame: FrameType | None) -> None:
        wish.asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield wish
    finally:
        signal.signal(signal.SIGINT, before)
