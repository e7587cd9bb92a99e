"""A run's folder that cannot be written: what the system says becomes what Braid raises. Writes nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from braid_fusion.training.checkpoint import steps_in
from braid_rpc.errors import StorageError

CHECKPOINTS = "checkpoints"


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Within it, an OSError leaves as a StorageError, which says what the run in ``folder`` can go on from. One of a
    connection, which is an OSError to Python and names no file, stays what it is."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (ConnectionError, TimeoutError)) and error.filename is None:
            raise
        raise StorageError(f"run in {folder}: cannot be written: {error}; {_what_is_left(folder)}") from error


def _what_is_left(folder: Path) -> str:
    found = []
    with suppress(OSError):
        found = steps_in(folder / CHECKPOINTS)
    if not found:
        return "there is no checkpoint yet to go on from"
    return f"its last checkpoint, {found[-1][1].name}, is whole: --resume goes on from it"
