"""What Markdown documents say, for tests that hold them to it: code blocks, tables, links and commands.

A document's Python blocks run in the order of the page and in one namespace, as a reader would run them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))

_FENCE = re.compile(r"^(`{3,})(\w*)\s*$")
_HEADING = re.compile(r"^#{1,6} +(.*?)\s*$")
_CODE_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A fenced block. ``line`` is where its first line of code stands, ``heading`` the nearest one above it."""

    path: Path
    heading: str
    language: str
    line: int
    code: str

    @property
    def where(self) -> str:
        """For messages and test ids."""
        return f"{self.path.relative_to(REPOSITORY)}:{self.line}"

    def substituted(self, replacements: Mapping[str, str]) -> CodeBlock:
        """The same with other values in it; each must occur, or the document has moved on without its test."""
        code = self.code
        for old, new in replacements.items():
            if old not in code:
                raise LookupError(f"{self.where}: no {old!r} in this block")
            code = code.replace(old, new)
        return replace(self, code=code)

    def run(self, namespace: dict[str, Any]) -> None:
        """Execute Python code; a traceback shows the document's own line."""
        namespace.setdefault("__name__", f"document_{self.path.stem}")
        source = "\n" * (self.line - 1) + self.code
        exec(compile(source, str(self.path), "exec"), namespace)


@dataclass(frozen=True, slots=True)
class Table:
    """A table's cells as they stand in the source, the heading above it, and the line of its header."""

    heading: str
    line: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def by_first_column(self) -> dict[str, dict[str, str]]:
        """Each row by its first cell, without backquotes."""
        return {row[0].strip("`"): dict(zip(self.columns[1:], row[1:], strict=True)) for row in self.rows}


def code_blocks(path: Path, language: str | None = None) -> list[CodeBlock]:
    """The fenced blocks of a document in order, all or those of one language."""
    return [
        block
        for block, _ in _scan(path)
        if block is not None and (language is None or block.language == language)
    ]


def tables(path: Path) -> list[Table]:
    """The tables of a document in order."""
    found: list[Table] = []
    pending: list[tuple[int, str, list[str]]] = []
    for number, heading, line in [*_prose(path), (0, "", "")]:
        if line.lstrip().startswith("|"):
            pending.append((number, heading, _cells(line)))
        elif pending:
            (first, above, columns), _, *rows = pending
            found.append(Table(above, first, tuple(columns), tuple(tuple(cells) for _, _, cells in rows)))
            pending = []
    return found


def table_under(path: Path, heading: str) -> Table:
    """The one table under a heading. Raises: LookupError if there is none, or more than one."""
    found = [table for table in tables(path) if table.heading == heading]
    if len(found) != 1:
        raise LookupError(f"{path.name}: {len(found)} tables under {heading!r}, expected one")
    return found[0]


def links(path: Path) -> list[str]:
    """The targets of all links outside of code."""
    return [target for _, _, line in _prose(path) for target in _LINK.findall(_CODE_SPAN.sub("", line))]


def headings(path: Path) -> list[str]:
    """All headings, without their marks."""
    return [match[1] for _, _, line in _prose(path) if (match := _HEADING.match(line))]


def code_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every code span outside of blocks, and every line of the blocks in a shell's language."""
    text = "\n".join(line for _, _, line in _prose(path))
    for match in _CODE_SPAN.finditer(text):
        yield 0, " ".join(match[1].split())
    for block in (*code_blocks(path, "bash"), *code_blocks(path, "sh")):
        joined = block.code.replace("\\\n", " ")
        for offset, line in enumerate(joined.splitlines()):
            yield block.line + offset, line.partition(" #")[0].strip()


def _cells(line: str) -> list[str]:
    # A pipe inside of a cell is written \|.
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _prose(path: Path) -> list[tuple[int, str, str]]:
    """Line number, heading above, and text of every line outside of code blocks."""
    return [line for block, line in _scan(path) if block is None and line is not None]


def _scan(path: Path) -> Iterator[tuple[CodeBlock | None, tuple[int, str, str] | None]]:
    heading, fence, language, first, code = "", "", "", 0, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = _FENCE.match(line)
        if fence:
            if line.strip() == fence:
                yield CodeBlock(path, heading, language, first, "\n".join(code) + "\n"), None
                fence, code = "", []
            else:
                code.append(line)
        elif match:
            fence, language, first = match[1], match[2], number + 1
        else:
            if title := _HEADING.match(line):
                heading = title[1]
            yield None, (number, heading, line)
    if fence:
        raise LookupError(f"{path.name}:{first}: a code block that is never closed")
