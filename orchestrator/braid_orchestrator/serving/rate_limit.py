"""How many requests one caller may send in a minute, counted by all orchestrators of a braid together."""

from __future__ import annotations

import asyncio
import hashlib
import logging

from braid_orchestrator.state.memory import MemoryStore
from braid_orchestrator.state.store import Count, StateStore
from braid_rpc.errors import BraidError, RateLimitError

_log = logging.getLogger(__name__)

_WINDOW_S = 60.0


class RateLimiter:
    """Counts requests in windows of a minute. While the store is away, this orchestrator counts its own."""

    def __init__(self, store: StateStore, per_minute: int) -> None:
        self._store = store
        self._own = MemoryStore()
        self._per_minute = per_minute

    async def admit(self, caller: str) -> None:
        """One more request of a caller. Raises: RateLimitError, saying when to come back."""
        # Who has the store's keys need not learn those of the callers.
        key = hashlib.sha256(caller.encode()).hexdigest()[:32]
        if isinstance(self._store, MemoryStore):
            count = self._store.count(key, _WINDOW_S)
        else:
            count = await asyncio.to_thread(self._count, key)
        if count.count > self._per_minute:
            raise RateLimitError(
                f"rate limit: got request {count.count} of this caller within a minute, expected at most "
                f"{self._per_minute}; try again in {count.resets_in_s:.0f} s",
                retry_after_s=max(count.resets_in_s, 1.0),
            )

    def _count(self, key: str) -> Count:
        try:
            return self._store.count(key, _WINDOW_S)
        except BraidError as error:
            _log.warning("requests are counted here alone: %s", error)
            return self._own.count(key, _WINDOW_S)
