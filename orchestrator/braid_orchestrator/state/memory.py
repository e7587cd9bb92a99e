"""The state store of a braid that is alone: in this process, gone with it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from braid_orchestrator.state.store import Count, Subscription


@dataclass(slots=True)
class _Entry:
    value: bytes
    expires_s: float


@dataclass(slots=True)
class _Log:
    entries: list[bytes]
    expires_s: float


class MemoryStore:
    """A `StateStore` for one process. Two orchestrators in one process may share it."""

    name = "memory"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` is in seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._tables: dict[str, dict[str, _Entry]] = defaultdict(dict)
        self._logs: dict[str, _Log] = {}
        self._counters: dict[str, tuple[int, float]] = {}
        self._listeners: dict[str, list[Callable[[bytes], None]]] = defaultdict(list)

    def get(self, table: str, key: str) -> bytes | None:
        """See `StateStore`."""
        with self._lock:
            return self._live(table).get(key)

    def items(self, table: str) -> dict[str, bytes]:
        """See `StateStore`."""
        with self._lock:
            return self._live(table)

    def put(self, table: str, key: str, value: bytes, expiry_s: float | None = None) -> None:
        """See `StateStore`."""
        with self._lock:
            self._tables[table][key] = _Entry(value, self._end(expiry_s))

    def swap(
        self, table: str, key: str, expected: bytes | None, value: bytes, expiry_s: float | None = None
    ) -> bool:
        """See `StateStore`."""
        with self._lock:
            if self._live(table).get(key) != expected:
                return False
            self._tables[table][key] = _Entry(value, self._end(expiry_s))
            return True

    def remove(self, table: str, keys: Iterable[str]) -> None:
        """See `StateStore`."""
        with self._lock:
            for key in keys:
                self._tables[table].pop(key, None)

    def append(self, entries: Mapping[str, bytes], expiry_s: float, begun: Container[str] = ()) -> None:
        """See `StateStore`."""
        with self._lock:
            now = self._clock()
            self._logs = {key: log for key, log in self._logs.items() if log.expires_s > now}
            for key, value in entries.items():
                if key in begun:
                    self._logs.pop(key, None)
                log = self._logs.setdefault(key, _Log([], 0.0))
                log.entries.append(value)
                log.expires_s = now + expiry_s

    def read_log(self, key: str) -> list[bytes]:
        """See `StateStore`."""
        with self._lock:
            log = self._logs.get(key)
            return list(log.entries) if log is not None and log.expires_s > self._clock() else []

    def remove_logs(self, keys: Iterable[str]) -> None:
        """See `StateStore`."""
        with self._lock:
            for key in keys:
                self._logs.pop(key, None)

    def count(self, key: str, window_s: float) -> Count:
        """See `StateStore`."""
        with self._lock:
            now = self._clock()
            self._counters = {key: counter for key, counter in self._counters.items() if counter[1] > now}
            counted, ends_s = self._counters.get(key, (0, now + window_s))
            self._counters[key] = (counted + 1, ends_s)
            return Count(counted + 1, ends_s - now)

    def publish(self, topic: str, message: bytes) -> None:
        """See `StateStore`. Listeners are called before this returns."""
        with self._lock:
            listeners = list(self._listeners[topic])
        for listener in listeners:
            listener(message)

    def subscribe(self, topic: str, on_message: Callable[[bytes], None]) -> Subscription:
        """See `StateStore`."""
        with self._lock:
            self._listeners[topic].append(on_message)
        return _MemorySubscription(self, topic, on_message)

    def ping(self) -> None:
        """See `StateStore`."""

    def close(self) -> None:
        """See `StateStore`."""
        with self._lock:
            self._listeners.clear()

    def unsubscribe(self, topic: str, on_message: Callable[[bytes], None]) -> None:
        """What a subscription's `close` does."""
        with self._lock:
            self._listeners[topic] = [one for one in self._listeners[topic] if one is not on_message]

    def _live(self, table: str) -> dict[str, bytes]:
        now = self._clock()
        entries = {key: entry for key, entry in self._tables[table].items() if entry.expires_s > now}
        self._tables[table] = entries
        return {key: entry.value for key, entry in entries.items()}

    def _end(self, expiry_s: float | None) -> float:
        return float("inf") if expiry_s is None else self._clock() + expiry_s


@dataclass(frozen=True, slots=True)
class _MemorySubscription:
    store: MemoryStore
    topic: str
    on_message: Callable[[bytes], None]

    def close(self) -> None:
        self.store.unsubscribe(self.topic, self.on_message)
