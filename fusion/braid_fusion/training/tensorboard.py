"""A run's log as events for TensorBoard. Decides nothing and knows not what the figures mean.

A folder is one run. What a run had written behind the checkpoint that it goes on from, it writes again; TensorBoard
is told to forget the former, so that each step is shown once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from braid_fusion.errors import TrainingConfigError

STEPS, EVALUATIONS = "training", "evaluation"
# Neither is a figure of the step.
_NOT_SHOWN = frozenset({"step", "seconds", "tokens"})
_FILE_VERSION = "brain.Event:2"


def has_tensorboard() -> bool:
    """Whether events can be written here."""
    return find_spec("tensorboardX") is not None


class TensorBoardLog:
    """Open while the run goes on; each line is in the file before `write` returns, or has raised OSError. (The
    library's own writer writes on a thread, which a full disk ends, and then waits for it without end.)

    Args:
        folder: of the events; None: nothing is written.
        resume_step: as for `RunLog`.

    Raises: TrainingConfigError if there is a folder, and nothing to write events with.
    """

    def __init__(self, folder: Path | None, resume_step: int | None = None) -> None:
        self._folder = folder
        self._first_step = 0 if resume_step is None else resume_step + 1
        self._file: IO[bytes] | None = None
        if folder is not None:
            check_tensorboard()

    def __enter__(self) -> TensorBoardLog:
        if self._folder is not None:
            from tensorboardX.proto.event_pb2 import SessionLog

            self._folder.mkdir(parents=True, exist_ok=True)
            # Files are told apart, and put in order, by the second in which they were begun, and then by the step.
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{self._first_step:08d}"
            self._file = (self._folder / name).open("wb")
            try:
                self._add(file_version=_FILE_VERSION)
                self._add(step=self._first_step, session_log=SessionLog(status=SessionLog.START))
            except OSError as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of what had not been written, which has been told
                self._file.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line of the log: the figures of a step, or those of an evaluation. Raises: OSError."""
        if self._file is None:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        place, figures = STEPS, line
        if "evaluation" in line:
            place, figures = EVALUATIONS, line["evaluation"]
        shown = [
            Summary.Value(tag=f"{place}/{name}", simple_value=float(value))
            for name, value in figures.items()
            if name not in _NOT_SHOWN and isinstance(value, int | float)
        ]
        self._add(step=line["step"], summary=Summary(value=shown))

    def sync(self) -> None:
        """Have all lines outlast a power cut."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def _add(self, **parts: Any) -> None:
        """Add an event, as a record: its length, the checksum of that, the event, its checksum."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        if self._file is None:
            return
        event = Event(wall_time=time.time(), **parts).SerializeToString()
        length = struct.pack("<Q", len(event))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        self._file.write(length + checks[0] + event + checks[1])
        self._file.flush()


def check_tensorboard() -> None:
    """Raises: TrainingConfigError if events can't be written here."""
    if not has_tensorboard():
        raise TrainingConfigError(
            "tensorboard: tensorboardX is not installed, expected the extra `tensorboard`: "
            "pip install '.[tensorboard]'"
        )
