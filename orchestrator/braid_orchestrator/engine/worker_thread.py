"""A thread that does what it is given, one thing after the other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class WorkerThread:
    """Takes work until it is shut down, also from threads that outlive the main one: `ThreadPoolExecutor` refuses
    it from the moment when the main thread ends. It keeps no program from ending."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], ResultT]) -> Future[ResultT]:
        """The function's result, or what it raises, once its turn has come. Not after `shutdown`."""
        future: Future[ResultT] = Future()
        self._work.put((future, function))
        return future

    def shutdown(self) -> None:
        """Do what was given, then end. Harmless when repeated."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, function = item
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - the caller's to handle
                future.set_exception(error)
            del item, future, function  # nothing of a step is kept until the next one
