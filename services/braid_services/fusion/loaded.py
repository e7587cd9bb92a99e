"""The modules in memory, by version: those used last. Knows neither folders nor which one is active."""

from __future__ import annotations

import logging
import threading
from collections.abc import Container
from dataclasses import dataclass

from braid_fusion.stack import FusionStack

MAX_LOADED = 8
"""Who publishes every hour must not fill the memory. Sessions hold their modules as long as they like."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Modules, and the SHA-256 of the weights that they were read from; of those that no folder has, the card, and
    when they were made."""

    stack: FusionStack
    sha256: str | None = None
    card_json: str | None = None
    created_unix_s: float = 0.0


class LoadedStacks:
    """At most ``limit`` versions, but for those that must be kept. Safe for threads."""

    def __init__(self, limit: int = MAX_LOADED) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._by_version: dict[str, Loaded] = {}  # the one used last comes last

    def names(self) -> tuple[str, ...]:
        """Of all that are in memory."""
        with self._lock:
            return tuple(self._by_version)

    def peek(self, version: str) -> Loaded | None:
        """What is known of a version in memory."""
        with self._lock:
            return self._by_version.get(version)

    def use(self, version: str) -> FusionStack | None:
        """The modules of a version, if they are in memory."""
        with self._lock:
            found = self._by_version.pop(version, None)
            if found is None:
                return None
            self._by_version[version] = found
            return found.stack

    def put(self, version: str, loaded: Loaded, keep: Container[str] = ()) -> None:
        """Add a version, or put it in another one's place; what was not used for longest leaves, but for those to
        ``keep``."""
        with self._lock:
            self._by_version.pop(version, None)
            self._by_version[version] = loaded
            leaving = [name for name in self._by_version if name != version and name not in keep]
            for name in leaving[: max(0, len(self._by_version) - self._limit)]:
                if self._by_version.pop(name).card_json is not None:
                    logger.warning(
                        "fusion version %s was in memory only, and makes room for newer ones", name
                    )
