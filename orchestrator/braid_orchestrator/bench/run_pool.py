"""Many runs of one kind, as many at a time as there are cores, each in a process that lives through them all.

Runs that are in a file of finished ones are not run again. Knows not what a run is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from braid_orchestrator.bench.finished_runs import FinishedRuns
from braid_orchestrator.bench.machine import usable_cores
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.workers import Crew

SpecT = TypeVar("SpecT")
ResultT = TypeVar("ResultT")

RUN_TIMEOUT_S = 3600.0


class RunPool(Generic[SpecT, ResultT]):
    """A context manager. Processes start with the first run that is not finished.

    Args:
        factory: makes, in each process, an object whose ``run(spec)`` gives a result.
        describe: a few words for the progress bar.
    """

    def __init__(
        self,
        factory: Callable[[], Any],
        describe: Callable[[SpecT], str],
        progress: Progress,
        finished: FinishedRuns[SpecT, ResultT],
    ) -> None:
        self._factory = factory
        self._describe = describe
        self._progress = progress
        self._finished = finished
        self._done = self._total = 0
        self._is_staffed = False
        self._counting = threading.Lock()
        self._crew = Crew()
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def __enter__(self) -> RunPool[SpecT, ResultT]:
        self._crew.__enter__()
        self._threads = ThreadPoolExecutor(usable_cores())
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        self._crew.__exit__(error, *rest)
        self._threads.shutdown(cancel_futures=True)

    def run(self, specs: Iterable[SpecT]) -> list[ResultT]:
        """In the order of the specs. Raises: BraidError if one fails."""
        specs = list(specs)
        self._total += len(specs)
        if not self._is_staffed and any(self._finished.find(spec) is None for spec in specs):
            self._is_staffed = True
            workers = [self._crew.hire(f"run {index}", self._factory) for index in range(usable_cores())]
            self._crew.wait_ready(workers, self._idle.put)
        return list(self._threads.map(self._run_one, specs))

    def _run_one(self, spec: SpecT) -> ResultT:
        result = self._finished.find(spec)
        if result is None:
            worker = self._idle.get()
            try:
                worker.ask("run", spec)
                result = worker.result(RUN_TIMEOUT_S)
            finally:
                self._idle.put(worker)
            self._finished.note(spec, result)
        with self._counting:
            self._done += 1
            self._progress(self._describe(spec), self._done, self._total)
        return result
