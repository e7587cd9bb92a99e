"""The log of a run: one JSON object per line, in a file and in memory. Knows not what the figures mean.

Lines have "step"; those of evaluations have "evaluation" besides, others the figures of the step. A figure that is
not finite is None, null in the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from braid_fusion.errors import TrainingError
from braid_fusion.strict_json import dump_json
from braid_fusion.whole_file import write_whole


class RunLog:
    """Open while the run goes on; each line is in the file before `write` returns.

    Args:
        path: the file; None: in memory only.
        resume_step: go on after this step. What an interrupted run logged later is dropped, for it is done again.
            None: begin anew.
    """

    def __init__(self, path: Path | None, resume_step: int | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self._path = path
        self._resume_step = resume_step
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLog:
        if self._path is not None:
            if self._resume_step is not None and self._path.is_file():
                self.lines = [line for line in read_log(self._path) if line["step"] <= self._resume_step]
            write_whole(self._path, *(dump_json(line).encode() + b"\n" for line in self.lines))
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line; it has "step"."""
        text = dump_json(line)
        self.lines.append(json.loads(text))
        if self._file is not None:
            self._file.write(text + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Have all lines outlast a power cut."""
        if self._file is not None:
            os.fsync(self._file.fileno())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log. One that was cut off at the end of the file is left out.

    Raises: TrainingError, naming the line, if another isn't a log's.
    """
    lines: list[dict[str, Any]] = []
    rows = path.read_bytes().splitlines(keepends=True)
    for number, row in enumerate(rows, start=1):
        try:
            line = json.loads(row.decode("utf-8"))
            if not isinstance(line["step"], int):
                raise TypeError("step is no whole number")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(rows) and not row.endswith(b"\n"):
                break
            raise TrainingError(
                f'{path}:{number}: got {row.decode("utf-8", "replace")[:60]!r}, expected a JSON object with "step"'
            ) from error
        lines.append(line)
    return lines
