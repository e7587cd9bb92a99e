"""Connections that say nothing: closed after a while, and sooner when there are too many of them.

Without it a thousand idle sockets would hold a thousand file descriptors for as long as they like.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_WANTED_FILES = 65_536


def patient_protocol(max_silent: int = 512, patience_s: float = 20.0) -> type[asyncio.Protocol]:
    """uvicorn's protocol, with a limit on connections from which no whole request has come yet: the oldest of them
    is closed for one that is too many, and each after ``patience_s`` without the rest of a request's head.
    """
    silent: dict[PatientProtocol, asyncio.TimerHandle] = {}

    class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """One connection."""

        def connection_made(self, transport: Any) -> None:
            """Opened."""
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            """Something came, perhaps not all of a request's head."""
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait()
            else:
                self._heard()

        def connection_lost(self, error: Exception | None) -> None:
            """Closed."""
            self._heard()
            super().connection_lost(error)

        def _wait(self) -> None:
            if self in silent:
                return
            silent[self] = self.loop.call_later(patience_s, self._give_up)
            if len(silent) > max_silent:
                next(iter(silent))._give_up()

        def _heard(self) -> None:
            timer = silent.pop(self, None)
            if timer is not None:
                timer.cancel()

        def _give_up(self) -> None:
            self._heard()
            self.transport.abort()

    return PatientProtocol


def allow_many_files() -> None:
    """Raise this process's limit of open files as far as it may: connections are files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _WANTED_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
