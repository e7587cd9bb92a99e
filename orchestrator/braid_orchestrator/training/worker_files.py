"""What workers of a run and who started them tell each other: files in the run's folder, which all of them see.

Knows neither what starts workers nor what they do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from braid_fusion.training import Evaluation, Progress, TrainingRecord
from braid_orchestrator.training.run import Outcome
from braid_orchestrator.training.storing import storage_errors
from braid_rpc.errors import BraidError

NOTICE_S = 0.2  # how soon what one side tells is looked for by the other
_OUTCOME, _STOP, _PROGRESS, _LEFT_OUT = ".outcome.json", ".stop", ".progress.json", ".left-out.jsonl"


def stop_file(folder: Path) -> Path:
    """Whose being there is the wish to stop."""
    return folder / _STOP


def forget(folder: Path) -> None:
    """Remove what an earlier run, or this one, has told. Raises: OSError."""
    for name in (_OUTCOME, _STOP, _PROGRESS, _LEFT_OUT):
        (folder / name).unlink(missing_ok=True)


class ProgressWriter:
    """In the first worker: leaves its progress, not oftener than it is read."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _PROGRESS
        self._written = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._written >= NOTICE_S or progress.fraction >= 1.0:
            self._written = now
            building = self._path.with_suffix(".building")
            building.write_text(json.dumps(asdict(progress)), encoding="utf-8")
            building.replace(self._path)


class ProgressReader:
    """Where the workers were started: passes on what is new of it."""

    def __init__(self, folder: Path, show: Callable[[Progress], None]) -> None:
        self._path = folder / _PROGRESS
        self._show = show
        self._last: Progress | None = None

    def __call__(self) -> None:
        try:
            progress = Progress(**json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:  # no step is taken yet
            return
        if progress != self._last:
            self._last = progress
            self._show(progress)


class LeftOutWriter:
    """In the first worker: leaves what it says of texts that were left out, a line at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, line: str) -> None:
        with storage_errors(self._folder), (self._folder / _LEFT_OUT).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class LeftOutReader:
    """Where the workers were started: passes each of these lines on, once."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._path = folder / _LEFT_OUT
        self._tell = tell
        self._num_told = 0

    def __call__(self) -> None:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:  # nothing is left out so far
            return
        whole = text[: text.rfind("\n") + 1].splitlines()
        for line in whole[self._num_told :]:
            self._tell(json.loads(line))
        self._num_told = len(whole)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """In the first worker, at the end. Raises: StorageError."""
    found = {
        "weights": None if outcome.weights is None else str(outcome.weights),
        "record": asdict(outcome.record),
        "held_out": outcome.held_out,
    }
    with storage_errors(folder):
        (folder / _OUTCOME).write_text(json.dumps(found), encoding="utf-8")


def read_outcome(folder: Path) -> Outcome:
    """Where the workers were started. Raises: BraidError if there is none."""
    path = folder / _OUTCOME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BraidError(
            f"workers: none of them wrote {path}; the run's folder must be shared by all"
        ) from error
    record = found["record"]
    record["evaluations"] = tuple(Evaluation(**one) for one in record["evaluations"])
    return Outcome(found["weights"] and Path(found["weights"]), TrainingRecord(**record), found["held_out"])
