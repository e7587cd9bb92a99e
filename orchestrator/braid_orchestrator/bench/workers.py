"""Processes that live through a whole benchmark: started together, asked one at a time, blocked in between.

A worker is an object that lives in a process of its own, and whose methods are called from here. Knows no
models.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Self

from braid_rpc.errors import BraidError, DeadlineError, UnavailableError

START_TIMEOUT_S = 300.0
CALL_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 10.0
# For a process to end by itself where nobody waits for what it does: its parent has ended, or is giving up.
_GRACE_S = 3.0

_CONTEXT = multiprocessing.get_context("spawn")


class Worker:
    """``factory(*args)`` in a child process. What it returns may have a ``stop`` method, called at the end."""

    def __init__(self, name: str, factory: Callable[..., Any], *args: Any) -> None:
        """Start the process; `wait_ready` waits until the object is there."""
        self.name = name
        self._pipe, other_end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_live, args=(other_end, factory, args), name=f"bench-{name}", daemon=True
        )
        with _without_interrupts():
            self._process.start()
        other_end.close()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def wait_ready(self) -> None:
        """Raises: BraidError if the object could not be made."""
        self.result(START_TIMEOUT_S)

    def ask(self, method: str, *args: Any) -> None:
        """Begin a call; `result` fetches what it returns."""
        try:
            self._pipe.send((method, args))
        except OSError as error:
            raise UnavailableError(f"benchmark process {self.name!r} has ended: {error}") from error

    def result(self, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Raises: BraidError, saying what went wrong in the process; DeadlineError, UnavailableError."""
        try:
            if not self._pipe.poll(timeout_s):
                raise DeadlineError(f"benchmark process {self.name!r}: no answer within {timeout_s:g} s")
            ok, value = self._pipe.recv()
        except EOFError as error:
            raise UnavailableError(f"benchmark process {self.name!r} has ended") from error
        if not ok:
            raise BraidError(f"benchmark process {self.name!r}: {value}")
        return value

    def call(self, method: str, *args: Any) -> Any:
        """Ask and wait. Raises: as `ask` and `result`."""
        self.ask(method, *args)
        return self.result()

    def cpu_s(self) -> float:
        """Processor time that the process has used so far."""
        return float(self.call("cpu_s"))

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """End the process, by force if that takes longer. May be called more than once."""
        self._pipe.close()
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Crew:
    """Workers that are started together and stopped together, in the opposite order. A context manager."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for worker in reversed(self.workers):
            worker.stop(_STOP_TIMEOUT_S if error is None else _GRACE_S)

    def hire(self, name: str, factory: Callable[..., Any], *args: Any) -> Worker:
        """Start one more process. It is not ready yet."""
        worker = Worker(name, factory, *args)
        self.workers.append(worker)
        return worker

    def wait_ready(self, workers: Sequence[Worker], on_ready: Callable[[Worker], None]) -> None:
        """Block until all of them are. Raises: BraidError of the first that fails."""
        for worker in workers:
            worker.wait_ready()
            on_ready(worker)

    def idle_share(self, seconds: float = 1.0) -> dict[str, float]:
        """Which share of a core each process takes while nothing is asked of any."""
        before = [worker.cpu_s() for worker in self.workers]
        started = time.perf_counter()
        time.sleep(seconds)
        elapsed = time.perf_counter() - started
        return {
            worker.name: (worker.cpu_s() - cpu_s) / elapsed
            for worker, cpu_s in zip(self.workers, before, strict=True)
        }

    def cpu_s(self) -> float:
        """Processor time that all of them have used so far."""
        return sum(worker.cpu_s() for worker in self.workers)


def barrier(parties: int) -> Any:
    """A barrier that workers may be given."""
    return _CONTEXT.Barrier(parties)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started within it never hear a Ctrl-C, which a terminal sends to all of a command's: whoever
    started them does, and ends them. One that comes meanwhile is heard afterwards."""
    resource_tracker.ensure_running()  # starting it would end the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live(pipe: Connection, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The child's main loop; it ends when the pipe does, however the parent ended, also in the middle of a call."""
    servant: Any = None

    def stop_servant() -> None:
        stop = getattr(servant, "stop", None)
        if stop is not None:
            stop()

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            time.sleep(_GRACE_S)
            try:
                stop_servant()
            finally:
                os._exit(1)

    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    try:
        try:
            servant = factory(*args)
        except Exception as error:  # noqa: BLE001 - reported to whoever waits
            pipe.send((False, _text(error)))
            return
        pipe.send((True, None))
        answer: tuple[bool, Any]
        while True:
            method, arguments = pipe.recv()
            try:
                value = time.process_time() if method == "cpu_s" else getattr(servant, method)(*arguments)
                answer = (True, value)
            except Exception as error:  # noqa: BLE001 - reported to whoever waits
                answer = (False, _text(error))
            pipe.send(answer)
    except (EOFError, OSError):
        return
    finally:
        stop_servant()


def _text(error: Exception) -> str:
    return error.message if isinstance(error, BraidError) else f"{type(error).__name__}: {error}"
