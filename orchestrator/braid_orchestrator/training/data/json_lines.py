"""Documents out of JSON lines, compressed or not: one record a line, read as it is needed. Knows no tokens."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from braid_orchestrator.training.data.documents import Document, document_of, fields_of_document
from braid_rpc.errors import InvalidRequestError

JSON_LINES_SUFFIXES = (".jsonl", ".jsonl.gz")
_SHOWN_CHARS = 60


def read_json_lines(path: Path, field: str | None) -> Iterator[Document]:
    """One document for each line that isn't blank.

    Args:
        field: as in `fields_of_document`.

    Raises: InvalidRequestError, naming file and line.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            is_compressed = path.name.lower().endswith(".gz")
            lines = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_compressed else raw
            reached = 0
            for number, line in enumerate(lines, 1):
                # Of a compressed file, its own bytes count: how many there will be of the text nobody knows.
                begun, reached = reached, raw.tell() if is_compressed else reached + len(line)
                if line.strip():
                    yield _document(line, field, f"{path}:{number}", reached - begun)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequestError(f"{path}: cannot be read after line {number}: {error}") from error


def _document(line: bytes, field: str | None, where: str, size: int) -> Document:
    try:
        text = line.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{where}: got byte 0x{line[error.start]:02x} at offset {error.start} of the line, which is not UTF-8 "
            f"there ({error.reason}), expected JSON in UTF-8"
        ) from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"{where}: got what is no JSON ({error}), expected a JSON object"
        ) from error
    if not isinstance(record, dict):
        raise InvalidRequestError(f"{where}: got {text[:_SHOWN_CHARS].strip()!r}, expected a JSON object")
    return document_of(record, fields_of_document(record, field, where), where, size)
