"""Text files, alone and in folders. Knows neither what other kinds of files hold, nor tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from braid_orchestrator.training.data.documents import Document, Skipped
from braid_rpc.errors import InvalidRequestError

# What is read of a folder. A file that is named itself may end in anything.
TEXT_SUFFIXES = (
    *(".txt", ".md", ".rst", ".tex", ".html"),
    *(".py", ".js", ".ts", ".java", ".c", ".h", ".cpp", ".hpp", ".go", ".rs", ".sh", ".sql", ".css"),
    *(".jsonl", ".jsonl.gz"),
)

# As far as git looks for what tells a binary file from text.
_BINARY_BYTES = 8192
_NOT_TEXT = "files that are not text in UTF-8"


class _NotText(Exception):  # noqa: N818 - never leaves this module
    """What is wrong with a file's bytes, to be put behind its name."""


def files_in(folder: Path, suffixes: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of a folder and of all folders in it that end in one of ``suffixes``, in the order of their paths.
    Names that begin with a dot are passed over; links to folders are not followed.

    Raises: InvalidRequestError if there is none, or a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InvalidRequestError(f"{error.filename}: cannot be read: {error}") from error

    found = []
    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(where, name)
            if not name.startswith(".") and name.lower().endswith(suffixes) and path.is_file():
                found.append(path)
    if not found:
        raise InvalidRequestError(
            f"{folder}: got a folder without files to read, expected some that end in {', '.join(suffixes)}"
        )
    return tuple(sorted(found, key=lambda path: path.relative_to(folder).as_posix()))


def read_file(path: Path) -> Document:
    """A whole file, which the user has named.

    Raises: InvalidRequestError, naming the offset of the first byte that is not UTF-8.
    """
    try:
        return _document(path)
    except _NotText as error:
        raise InvalidRequestError(f"{path}: {error}") from error


def read_found(path: Path, skipped: Skipped) -> Iterator[Document]:
    """A whole file that a folder happens to hold; none where it isn't text. Raises: InvalidRequestError."""
    try:
        yield _document(path)
    except _NotText as error:
        skipped.note(f"{path} ({error})", _NOT_TEXT)


def _document(path: Path) -> Document:
    """Line ends stay as they are; a byte order mark goes."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be read: {error}") from error
    zero = data.find(b"\0", 0, _BINARY_BYTES)
    if zero >= 0:
        raise _NotText(f"got a zero byte at offset {zero}, as binary files have them, expected text in UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _NotText(
            f"got byte 0x{data[error.start]:02x} at offset {error.start}, which is not UTF-8 there "
            f"({error.reason}), expected text in UTF-8"
        ) from error
    return Document(str(path), text.removeprefix("\ufeff"), size=len(data))
