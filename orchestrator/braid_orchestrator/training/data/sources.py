"""What a user's word for a text means: a file, a folder, JSON lines or a data set. Knows no tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from braid_orchestrator.training.data import hub
from braid_orchestrator.training.data.documents import Document, Skipped
from braid_orchestrator.training.data.files import TEXT_SUFFIXES, files_in, read_file, read_found
from braid_orchestrator.training.data.json_lines import JSON_LINES_SUFFIXES, read_json_lines
from braid_orchestrator.training.data.origins import Origin, taken_twice
from braid_rpc.errors import InvalidRequestError, NotFoundError


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """``suffixes``: of the files that are read of a folder. ``field``: of the records of JSON lines and data sets;
    None: "text", or "prompt" and "completion"."""

    suffixes: tuple[str, ...] = TEXT_SUFFIXES
    field: str | None = None

    def __post_init__(self) -> None:
        wrong = [suffix for suffix in self.suffixes if not suffix.startswith(".") or suffix == "."]
        if wrong or not self.suffixes:
            got = repr(wrong[0]) if wrong else "none"
            raise InvalidRequestError(f"suffixes: got {got}, expected suffixes such as '.txt'")
        object.__setattr__(self, "suffixes", tuple(suffix.lower() for suffix in self.suffixes))


class TextSource(Protocol):
    """Where documents come from; iterating again gives the same ones."""

    @property
    def spec(self) -> str:
        """As the user put it."""
        ...

    @property
    def size(self) -> int:
        """The documents' sizes together, or more: to tell how far reading is."""
        ...

    @property
    def origins(self) -> frozenset[Origin]:
        """What is read; see `origins`."""
        ...

    def documents(self, skipped: Skipped) -> Iterator[Document]:
        """In a fixed order, read as they are asked for. Raises: InvalidRequestError."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """Files, one that was named or those of a folder. ``size`` in bytes."""

    spec: str
    files: tuple[Path, ...]
    size: int
    is_folder: bool
    field: str | None

    @property
    def origins(self) -> frozenset[Origin]:
        """Paths."""
        return frozenset(Origin(str(path.resolve())) for path in self.files)

    def documents(self, skipped: Skipped) -> Iterator[Document]:
        """A document for each text file and for each record of JSON lines."""
        for path in self.files:
            if path.name.lower().endswith(JSON_LINES_SUFFIXES):
                yield from read_json_lines(path, self.field)
            elif self.is_folder:
                yield from read_found(path, skipped)
            else:
                yield read_file(path)


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """A data set's split. ``size`` in rows."""

    rows: hub.DatasetRows

    @property
    def spec(self) -> str:
        """As the user put it."""
        return self.rows.spec

    @property
    def size(self) -> int:
        """In rows."""
        return self.rows.size

    @property
    def origins(self) -> frozenset[Origin]:
        """Rows of splits."""
        return self.rows.origins

    def documents(self, skipped: Skipped) -> Iterator[Document]:
        """A document for each row."""
        return self.rows.documents()


@dataclass(frozen=True, slots=True)
class MemorySource:
    """Documents that a program has made. ``size`` is their own."""

    spec: str
    given: Sequence[Document]

    @property
    def size(self) -> int:
        """Of all documents."""
        return sum(document.size for document in self.given)

    @property
    def origins(self) -> frozenset[Origin]:
        """Nowhere."""
        return frozenset()

    def documents(self, skipped: Skipped) -> Iterator[Document]:
        """As they were given."""
        return iter(self.given)


def find_source(spec: str, options: ReadingOptions) -> TextSource:
    """The source that ``spec`` names: a path, or a data set in the form that `hub` has.

    Raises: NotFoundError, InvalidRequestError, and what `hub.open_dataset` raises.
    """
    if spec.startswith(hub.PREFIX):
        return DatasetSource(hub.open_dataset(spec, options.field))
    path = Path(spec)
    try:
        if path.is_dir():
            files = files_in(path, options.suffixes)
        elif path.is_file():
            files = (path,)
        elif path.exists():
            raise InvalidRequestError(
                f"{spec}: got neither a file nor a folder, expected what can be read twice"
            )
        else:
            raise NotFoundError(f"{spec}: no such file or folder; a data set is named {hub.FORM}")
        size = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise InvalidRequestError(f"{spec}: cannot be read: {error}") from error
    return FileSource(spec, files, size, path.is_dir(), options.field)


def refuse_taken_twice(sources: Sequence[TextSource]) -> None:
    """Raises: InvalidRequestError for a text, or a part of one, that is in two sources."""
    twice = taken_twice(source.origins for source in sources)
    if twice is not None:
        raise InvalidRequestError(f"{twice}: got a text that is named twice, expected each once")
