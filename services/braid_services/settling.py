"""What a process does once everything is loaded and before it serves."""

from __future__ import annotations

import gc


def settle() -> None:
    """Hide what is there by now (libraries, models, caches of both) from the garbage collector.

    It lives as long as the process. Otherwise every full collection walks through some hundred thousand objects, and
    all sessions wait meanwhile.
    """
    gc.collect()
    gc.freeze()
