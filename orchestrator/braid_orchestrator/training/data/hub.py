"""Documents out of data sets, as the `datasets` library finds them on a hub or in a folder. Knows no tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from braid_orchestrator.training.data.documents import Document, document_of, fields_of_document
from braid_orchestrator.training.data.origins import Origin
from braid_rpc.errors import BraidError, ConfigError, InvalidRequestError, NotFoundError, UnavailableError

PREFIX = "hf:"
FORM = "hf:NAME[@CONFIG][:SPLIT[:FIELD]]"
_DEFAULT_SPLIT, _ALL_SPLITS = "train", "all"
# A split may be sliced, with a colon of its own: train[:1000].
_SPEC = re.compile(
    r"hf:(?P<name>[^:@]+)(?:@(?P<config>[^:]+))?"
    r"(?::(?P<split>[^:\[\]]*(?:\[[^\[\]]*\])?))?(?::(?P<field>[^:]+))?"
)


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """One split of a data set, or a part of it, on this machine and not in memory."""

    spec: str
    origins: frozenset[Origin]
    rows: Any
    fields: tuple[str, ...]

    @property
    def size(self) -> int:
        """In rows."""
        return len(self.rows)

    def documents(self) -> Iterator[Document]:
        """One for each row. Raises: InvalidRequestError for a row without text."""
        for number, row in enumerate(self.rows):
            yield document_of(row, self.fields, f"{self.spec}[{number}]", 1)


def open_dataset(spec: str, field: str | None) -> DatasetRows:
    """A split, fetched from the hub unless it is here already.

    Args:
        spec: of the form `FORM`. NAME is what `datasets.load_dataset` takes: a name on the hub, or a folder.
        field: where ``spec`` names none; as in `fields_of_document`.

    Raises: InvalidRequestError for a spec of another form, or no such configuration, split or field; NotFoundError;
        UnavailableError for a hub that doesn't answer; ConfigError without the library.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise InvalidRequestError(f"{spec}: expected the form {FORM}")
    library = _library(spec)
    split = match["split"] or _DEFAULT_SPLIT
    failures = (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError)
    try:
        rows = library.load_dataset(match["name"], match["config"], split=split)
    except failures as error:
        raise _refusal(spec, error) from error
    fields = fields_of_document(rows.column_names, match["field"] or field, spec)
    return DatasetRows(
        spec, _origins(library, match["name"], rows, split, fields), rows.select_columns(list(fields)), fields
    )


def with_absolute_folder(spec: str) -> str:
    """The same data set, named from wherever; unchanged if it is no folder on this machine.

    Raises: InvalidRequestError for a folder whose whole path can't be part of a spec.
    """
    match = _SPEC.fullmatch(spec)
    if match is None or not Path(match["name"]).is_dir():
        return spec
    folder = str(Path(match["name"]).resolve())
    absolute = f"{spec[: match.start('name')]}{folder}{spec[match.end('name') :]}"
    again = _SPEC.fullmatch(absolute)
    if again is None or again["name"] != folder:
        raise InvalidRequestError(f"{spec}: got the folder {folder}, expected a path without '@' and ':'")
    return absolute


def _origins(
    library: ModuleType, name: str, rows: Any, split: str, fields: tuple[str, ...]
) -> frozenset[Origin]:
    """Which rows of which splits; a split may be sliced, and several joined by a plus. Where nobody says how many
    rows splits have, the word itself."""
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    whole = {one: info.num_examples for one, info in (rows.info.splits or {}).items()}
    prefix = f"{PREFIX}{name}@{rows.info.config_name}"
    if not whole:
        return frozenset([Origin(f"{prefix}:{split}", fields=fields)])
    if split == _ALL_SPLITS:
        parts = [(one, 0, size) for one, size in whole.items()]
    else:
        instruction = library.ReadInstruction.from_spec(split)
        parts = [(part.splitname, part.from_, part.to) for part in instruction.to_absolute(whole)]
    return frozenset(Origin(f"{prefix}:{one}", begin, end, fields) for one, begin, end in parts)


def _library(spec: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{spec}: the package `datasets` is not installed, expected the extra `data`: pip install '.[data]'"
        ) from error
    library: ModuleType = datasets
    return library


def _refusal(spec: str, error: Exception) -> BraidError:
    reason = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{spec}: no such data set: {reason}")
    if isinstance(error, ConnectionError | TimeoutError):
        return UnavailableError(f"{spec}: the hub cannot be reached: {reason}")
    cause = "" if error.__cause__ is None else f" ({' '.join(str(error.__cause__).split())})"
    return InvalidRequestError(f"{spec}: cannot be loaded: {reason}{cause}")
