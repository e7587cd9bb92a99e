"""Whether something can be written to a place, found by trying and without leaving a trace. Knows not what it is."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def check_folder(folder: Path) -> None:
    """Raises: OSError, naming what is in the way, if no file can be put into ``folder``. Folders on the way to it
    that are missing are made, and removed again."""
    with missing_made(folder):
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
                pass
        except OSError as error:  # its name would tell nobody anything
            raise OSError(error.errno, error.strerror, str(folder)) from error


@contextmanager
def missing_made(folder: Path) -> Iterator[None]:
    """``folder``, and folders on the way to it that are missing, are made, and in the end removed again, unless
    something was put into them. Raises: OSError, naming what is in the way."""
    made: list[Path] = []
    try:
        for place in (*reversed(folder.parents), folder):
            if not place.exists():
                place.mkdir(exist_ok=True)
                made.append(place)
        yield
    finally:
        for place in reversed(made):
            with suppress(OSError):
                place.rmdir()


def check_file(path: Path) -> None:
    """Raises: OSError, naming what is in the way, if ``path`` can't be written or overwritten. What is there already
    stays as it is; a pipe or a device isn't tried."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.is_file():
        with path.open("ab"):
            return
    if not path.exists():
        check_folder(path.parent)
