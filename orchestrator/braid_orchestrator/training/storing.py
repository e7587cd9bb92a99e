"""A run's folder that another run has, or that cannot be written: found before the run, and what the system says
becomes what Braid raises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from braid_fusion.training import has_tensorboard
from braid_fusion.training.checkpoint import steps_in
from braid_orchestrator.folder_lock import alone_in
from braid_orchestrator.writable import check_folder
from braid_rpc.errors import StorageError

CHECKPOINTS, WEIGHTS, TENSORBOARD = "checkpoints", "weights", "tensorboard"
_LOCK, _WORKERS_LOCK = ".lock", ".workers.lock"


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Held by who writes into a run's ``folder``, for as long as it may, and gone with its process.

    Raises: ConflictError where a run is under way in it; StorageError if it cannot be written.
    """
    with _held(folder, _LOCK):
        yield


@contextmanager
def only_workers(folder: Path) -> Iterator[None]:
    """Held by who starts workers on a run in ``folder`` and hears of them by files there; the first worker has a
    process of its own, which outlives this one for a moment, and holds `only_run`.

    Raises: as `only_run`.
    """
    with _held(folder, _WORKERS_LOCK):
        with only_run(folder):  # nobody's, so that whoever has it is told before workers are started
            pass
        yield


@contextmanager
def _held(folder: Path, name: str) -> Iterator[None]:
    taken = (
        f"{folder}: got a run that is under way in it, expected none: wait for its end, or choose another folder "
        "(--into)"
    )
    with ExitStack() as stack:
        with storage_errors(folder):
            stack.enter_context(alone_in(folder, taken, name))
        yield


def check_writable(folder: Path, tensorboard: Path | None) -> None:
    """Raises: StorageError if a run can't write into its ``folder``, or its events where ``tensorboard`` says. Leaves
    nothing there, and in a folder that is there makes no other: workers may look into it meanwhile."""
    with storage_errors(folder):
        check_folder(folder)
        for name in (
            CHECKPOINTS,
            WEIGHTS,
            *([TENSORBOARD] if tensorboard is None and has_tensorboard() else []),
        ):
            if os.path.lexists(folder / name):
                check_folder(folder / name)
    if tensorboard is not None:
        try:
            check_folder(tensorboard)
        except OSError as error:
            raise StorageError(f"tensorboard: {tensorboard} cannot be written: {error}") from error


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Within it, an OSError leaves as a StorageError, which says what the run in ``folder`` can go on from. One of a
    connection, which is an OSError to Python and names no file, stays what it is."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (ConnectionError, TimeoutError)) and error.filename is None:
            raise
        raise StorageError(f"run in {folder}: cannot be written: {error}; {what_is_left(folder)}") from error


def what_is_left(folder: Path) -> str:
    """What a run that ended in the middle can go on from, as a clause."""
    found = []
    with suppress(OSError):
        found = steps_in(folder / CHECKPOINTS)
    if not found:
        return "there is no checkpoint yet to go on from"
    return f"--resume goes on from its last checkpoint, {found[-1][1].name}"
