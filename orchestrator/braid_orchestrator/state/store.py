"""What the state store can do, whichever it is. Values are bytes; what they mean stands in the modules that use it.

Everything lies in one namespace, the braid's, so that several braids may share a Redis. All calls block, may come
from any thread, and raise `UnavailableError`, naming the store, if it does not answer, or `CorruptStateError` if
something else than we wrote lies there.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Count:
    """How often something was counted in this window, and how long the window still lasts."""

    count: int
    resets_in_s: float


class Subscription(Protocol):
    """Someone listens, until it is closed."""

    def close(self) -> None:
        """Hear nothing more. May be called more than once."""


class StateStore(Protocol):
    """Tables of values that may expire, logs that only grow, counters, and notices."""

    @property
    def name(self) -> str:
        """What messages call it; without secrets."""

    def get(self, table: str, key: str) -> bytes | None:
        """A value, or None if there is none (any more)."""

    def items(self, table: str) -> dict[str, bytes]:
        """All values of a table that have not expired, by key."""

    def put(self, table: str, key: str, value: bytes, expiry_s: float | None = None) -> None:
        """Set a value; without ``expiry_s`` it stays for good."""

    def swap(
        self, table: str, key: str, expected: bytes | None, value: bytes, expiry_s: float | None = None
    ) -> bool:
        """Set a value only if ``expected`` lies there (None: nothing); whether it did. Only one of several wins."""

    def remove(self, table: str, keys: Iterable[str]) -> None:
        """Forget values. Unknown keys are passed over."""

    def append(self, entries: Mapping[str, bytes], expiry_s: float, begun: Container[str] = ()) -> None:
        """Add one entry to each of these logs, all or none of it; a log ends ``expiry_s`` after its last. Those that
        are ``begun`` have no other entry afterwards."""

    def read_log(self, key: str) -> list[bytes]:
        """A log's entries in their order; none if there is no such log."""

    def remove_logs(self, keys: Iterable[str]) -> None:
        """Forget logs. Unknown keys are passed over."""

    def count(self, key: str, window_s: float) -> Count:
        """Count once in a window that begins with the first count and lasts ``window_s``."""

    def publish(self, topic: str, message: bytes) -> None:
        """Tell everyone who listens now."""

    def subscribe(self, topic: str, on_message: Callable[[bytes], None]) -> Subscription:
        """Call ``on_message``, from a thread of the store's, for every notice from now on.

        Notices are hints: those of a time in which the store was away are lost, so look at the values as well.
        """

    def ping(self) -> None:
        """Raises: UnavailableError if the store does not answer."""

    def close(self) -> None:
        """Release everything. May be called more than once."""
