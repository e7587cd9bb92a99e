"""A run's log as events for TensorBoard. Decides nothing and knows not what the figures mean.

A folder is one run. What a run had written behind the checkpoint that it goes on from, it writes again; TensorBoard
is told to forget the former, so that each step is shown once.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from braid_fusion.errors import TrainingConfigError

STEPS, EVALUATIONS = "training", "evaluation"
# Neither is a figure of the step.
_NOT_SHOWN = frozenset({"step", "seconds", "tokens"})
_FLUSH_S = 10


def has_tensorboard() -> bool:
    """Whether events can be written here."""
    return find_spec("tensorboardX") is not None


class TensorBoardLog:
    """Open while the run goes on.

    Args:
        folder: of the events; None: nothing is written.
        resume_step: as for `RunLog`.

    Raises: TrainingConfigError if there is a folder, and nothing to write events with.
    """

    def __init__(self, folder: Path | None, resume_step: int | None = None) -> None:
        self._folder = folder
        self._first_step = 0 if resume_step is None else resume_step + 1
        self._writer: Any = None
        if folder is not None:
            check_tensorboard()

    def __enter__(self) -> TensorBoardLog:
        if self._folder is not None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(
                str(self._folder),
                purge_step=self._first_step,
                flush_secs=_FLUSH_S,
                # Files are told apart, and put in order, by the second in which they were begun, and then by this.
                filename_suffix=f".{self._first_step:08d}",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line of the log: the figures of a step, or those of an evaluation."""
        if self._writer is None:
            return
        place, figures = STEPS, line
        if "evaluation" in line:
            place, figures = EVALUATIONS, line["evaluation"]
        for name, value in figures.items():
            if name not in _NOT_SHOWN and isinstance(value, int | float):
                self._writer.add_scalar(f"{place}/{name}", float(value), line["step"])

    def sync(self) -> None:
        """Have all lines in the files."""
        if self._writer is not None:
            self._writer.flush()


def check_tensorboard() -> None:
    """Raises: TrainingConfigError if events can't be written here."""
    if not has_tensorboard():
        raise TrainingConfigError(
            "tensorboard: tensorboardX is not installed, expected the extra `tensorboard`: "
            "pip install '.[tensorboard]'"
        )
