"""Results of runs in a file, one JSON object per line, so that a benchmark that was ended goes on where it was."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path

from braid_orchestrator.bench.graft_runs import RunResult, RunSpec
from braid_rpc.errors import InvalidRequestError


class FinishedRuns:
    """By everything that decides a run. Without a ``path`` nothing is found and nothing kept.

    Raises: InvalidRequestError, naming file and line, for what is no result.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._results: dict[str, RunResult] = {}
        if path is None or not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
                self._results[_key(RunSpec(**found["spec"]))] = RunResult(**found["result"])
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines) and not line.endswith("\n"):
                    path.write_text("".join(lines[:-1]), encoding="utf-8")  # ended while it was written
                    continue
                raise InvalidRequestError(
                    f"{path}, line {number}: got no result of a run ({error}), expected what this benchmark wrote"
                ) from error

    def find(self, spec: RunSpec) -> RunResult | None:
        """The result of an equal run, if there was one."""
        return self._results.get(_key(spec))

    def note(self, spec: RunSpec, result: RunResult) -> None:
        """Keep a result."""
        if self._path is None:
            return
        line = json.dumps({"spec": asdict(spec), "result": asdict(result)})
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            self._results[_key(spec)] = result
            file.write(line + "\n")


def _key(spec: RunSpec) -> str:
    return json.dumps(asdict(spec), sort_keys=True)
