"""Plain child processes, supervised: started, waited for, restarted when they die, and never left behind.

Each child listens on a unix socket of its own. It holds the reading end of a pipe whose other end is here: when
this process is gone, however it went, the child sees the end of its input and ends too. Knows no models.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from braid_orchestrator.serving.probing import wait_healthy
from braid_rpc.errors import BraidError

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_FIRST_RESTART_S = 0.2
_LAST_RESTART_S = 10.0
_STEADY_S = 30.0


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run, and the gRPC target on which it will answer.

    ``log`` takes what it says, and ``environment`` is in place of this process's; None: as here.
    """

    name: str
    command: tuple[str, ...]
    target: str
    log: Path | None = None
    environment: Mapping[str, str] | None = None


class _Child:
    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.delay_s = _FIRST_RESTART_S
        self.restart_at_s = 0.0
        self.start()

    def start(self) -> None:
        # A session of its own: Ctrl-C reaches this process only, which ends the children in order.
        with nullcontext() if self.spec.log is None else self.spec.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.spec.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.spec.environment,
                start_new_session=True,
            )
        self.started_s = time.monotonic()

    def close_pipe(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()


class Supervisor:
    """Owns its processes from `start` to `stop`; use it as a context manager."""

    def __init__(self, specs: Sequence[ProcessSpec]) -> None:
        self._specs = tuple(specs)
        self._children: list[_Child] = []
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        for spec in self._specs:
            self._children.append(_Child(spec))
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """The process that runs under each name now."""
        return {child.spec.name: child.process.pid for child in self._children}

    def wait_ready(self, timeout_s: float) -> None:
        """Block until every process answers health checks; from then on they are restarted when they die.

        Raises: BraidError if one of them ends before that, UnavailableError after ``timeout_s``.
        """
        give_up_s = time.monotonic() + timeout_s
        for child in self._children:
            wait_healthy(child.spec.target, max(give_up_s - time.monotonic(), 0.0), self.check_alive)
        self._watcher.start()

    def check_alive(self) -> None:
        """Raises: BraidError if a process has ended; once all were ready, they are restarted instead."""
        if self._watcher.is_alive():
            return
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                reason = "see above why" if child.spec.log is None else f"{child.spec.log} says why"
                raise BraidError(
                    f"{child.spec.name} ended with exit code {code} before it was ready; {reason}"
                )

    def stop(self, grace_s: float = 10.0) -> None:
        """End all processes: politely, and after ``grace_s`` by force. May be called more than once."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for child in self._children:
            if child.process.poll() is None:
                child.process.terminate()
        give_up_s = time.monotonic() + grace_s
        for child in self._children:
            try:
                child.process.wait(max(give_up_s - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                _log.warning("%s does not end, killing it", child.spec.name)
                child.process.kill()
                child.process.wait()
            child.close_pipe()

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_S):
            for child in self._children:
                code = child.process.poll()
                now = time.monotonic()
                if code is None:
                    continue
                if not child.restart_at_s:
                    if now - child.started_s > _STEADY_S:
                        child.delay_s = _FIRST_RESTART_S
                    _log.warning(
                        "%s ended with exit code %s, starting it again in %.1f s",
                        child.spec.name,
                        code,
                        child.delay_s,
                    )
                    child.restart_at_s = now + child.delay_s
                elif now >= child.restart_at_s:
                    child.close_pipe()
                    child.start()
                    child.restart_at_s = 0.0
                    child.delay_s = min(2 * child.delay_s, _LAST_RESTART_S)
