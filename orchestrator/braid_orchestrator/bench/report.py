"""What every benchmark gives: settings, machine, tables, targets and raw figures; as JSON, table or Markdown.

Knows nothing of what is measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from braid_rpc.errors import InvalidRequestError

Cell = str | float | int | bool | None
Relation = Literal["<=", "<", ">="]

_HOLDS = {
    "<=": lambda value, limit: value <= limit,
    "<": lambda value, limit: value < limit,
    ">=": lambda value, limit: value >= limit,
}
_SIGNS = {"<=": "≤", "<": "<", ">=": "≥"}


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was to be reached: ``value`` stands in ``relation`` to ``limit``, or it isn't met."""

    name: str
    value: float
    limit: float
    relation: Relation = "<="
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it was reached. What isn't a number never is."""
        return bool(_HOLDS[self.relation](self.value, self.limit))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON object."""
        return {
            "name": self.name,
            "value": self.value,
            "limit": self.limit,
            "met": self.met,
            "relation": self.relation,
            "unit": self.unit,
        }


@dataclass(frozen=True, slots=True)
class Table:
    """Figures for humans; ``rows`` have one cell per column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one run of one benchmark. ``raw`` is whatever the figures were made from."""

    benchmark: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    tables: tuple[Table, ...]
    targets: tuple[Target, ...]
    raw: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """One object that JSON can carry, and from which `from_dict` makes the same report."""
        return {
            "benchmark": self.benchmark,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "targets": [target.to_dict() for target in self.targets],
            "tables": [
                {
                    "title": t.title,
                    "columns": list(t.columns),
                    "rows": [list(row) for row in t.rows],
                    "note": t.note,
                }
                for t in self.tables
            ],
            "raw": dict(self.raw),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Report:
        """JSON has no NaN: a target without a value is one whose value isn't a number.

        Raises: InvalidRequestError for an object that is no report.
        """
        try:
            return cls(
                benchmark=str(value["benchmark"]),
                settings=value["settings"],
                machine=value["machine"],
                tables=tuple(
                    Table(t["title"], tuple(t["columns"]), tuple(tuple(row) for row in t["rows"]), t["note"])
                    for t in value["tables"]
                ),
                targets=tuple(
                    Target(t["name"], _number(t["value"]), _number(t["limit"]), t["relation"], t["unit"])
                    for t in value["targets"]
                ),
                raw=value["raw"],
            )
        except (KeyError, TypeError) as error:
            got = f"an object that lacks {error}" if isinstance(value, Mapping) else f"{value!r:.60}"
            raise InvalidRequestError(f"report: got {got}, expected what --json prints") from error

    def print(self, console: Console) -> None:
        """Tables and targets on a terminal."""
        console.print(Text(_line(self.machine), style="dim"))
        console.print(Text(_line(self.settings), style="dim"))
        for table in (*self.tables, self._target_table()):
            grid = RichTable(title=table.title, title_justify="left", title_style="bold")
            for index, column in enumerate(table.columns):
                grid.add_column(column, justify="left" if index == 0 else "right")
            for row in table.rows:
                grid.add_row(*(Text(format_cell(cell)) for cell in row))
            console.print()
            console.print(grid)
            if table.note:
                console.print(Text(table.note, style="dim"))

    def to_markdown(self) -> str:
        """The same for a document."""
        parts = [f"Machine: {_line(self.machine)}.", f"Settings: {_line(self.settings)}."]
        for table in (*self.tables, self._target_table()):
            lines = [f"**{table.title}**", "", _markdown_row(table.columns)]
            lines.append(_markdown_row(["---", *("---:" for _ in table.columns[1:])]))
            lines += [_markdown_row([format_cell(cell) for cell in row]) for row in table.rows]
            if table.note:
                lines += ["", table.note]
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def _target_table(self) -> Table:
        return Table(
            "Targets",
            ("target", "value", "limit", "met"),
            tuple(
                (
                    t.name,
                    _with_unit(t.value, t.unit),
                    f"{_SIGNS[t.relation]} {_with_unit(t.limit, t.unit)}",
                    t.met,
                )
                for t in self.targets
            ),
        )


def replace_section(path: Path, report: Report) -> None:
    """Put a report's Markdown between the marks ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` of a document.

    Raises: InvalidRequestError if the document has no such marks.
    """
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {report.benchmark} -->", f"<!-- end {report.benchmark} -->"
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if not pattern.search(text):
        raise InvalidRequestError(
            f"{path}: got no {begin} … {end}, expected marks between which the table goes"
        )
    body = f"\n{report.to_markdown()}\n"
    path.write_text(pattern.sub(lambda match: match[1] + body + match[2], text), encoding="utf-8")


def format_cell(cell: Cell) -> str:
    """Three significant digits or so; nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return str(cell)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.2f} {unit}".rstrip()


def _line(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {format_cell(value)}" for name, value in values.items())


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
