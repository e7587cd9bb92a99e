"""Results of runs in a file, one JSON object per line, so that a benchmark that was ended goes on where it was."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from braid_rpc.errors import InvalidRequestError

SpecT = TypeVar("SpecT")
ResultT = TypeVar("ResultT")


class FinishedRuns(Generic[SpecT, ResultT]):
    """By everything that decides a run. Without a ``path`` nothing is found and nothing kept.

    Args:
        spec_type: a dataclass, all that decides a run; its values are such as JSON gives back.
        result_type: a dataclass, likewise.

    Raises: InvalidRequestError, naming file and line, for what is no result.
    """

    def __init__(self, path: Path | None, spec_type: type[SpecT], result_type: type[ResultT]) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._results: dict[str, ResultT] = {}
        if path is None or not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
                self._results[_key(spec_type(**found["spec"]))] = result_type(**found["result"])
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines) and not line.endswith("\n"):
                    path.write_text("".join(lines[:-1]), encoding="utf-8")  # ended while it was written
                    continue
                raise InvalidRequestError(
                    f"{path}, line {number}: got no result of a run ({error}), expected what this benchmark wrote"
                ) from error

    def find(self, spec: SpecT) -> ResultT | None:
        """The result of an equal run, if there was one."""
        return self._results.get(_key(spec))

    def note(self, spec: SpecT, result: ResultT) -> None:
        """Keep a result."""
        if self._path is None:
            return
        line = json.dumps({"spec": _plain(spec), "result": _plain(result)})
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            self._results[_key(spec)] = result


def _key(spec: object) -> str:
    return json.dumps(_plain(spec), sort_keys=True)


def _plain(value: object) -> dict[str, Any]:
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"got {value!r}, expected an instance of a dataclass")
    return asdict(value)
