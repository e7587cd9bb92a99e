"""A report says the same as JSON, as a table and as Markdown."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from strict_parsing import parse_strictly

from braid_fusion.strict_json import dump_json
from braid_orchestrator.bench.report import Report, Table, Target, format_cell, replace_section
from braid_rpc.errors import InvalidRequestError

REPORT = Report(
    benchmark="step",
    settings={"tokens": 24},
    machine={"processor": "Model 1", "cores": 2},
    tables=(Table("Times", ("side", "ms"), (("(a) | left", 12.345), ("none", None)), "A note."),),
    targets=(Target("(e) / (c)", 1.2, 1.15), Target("times", 11.0, 10.0, ">=")),
    raw={"ms": [1.0, 2.0]},
)


@pytest.mark.parametrize(
    ("value", "relation", "met"),
    [
        (1.0, "<=", True),
        (1.0, "<", False),
        (0.9, "<", True),
        (1.0, ">=", True),
        (0.9, ">=", False),
        (math.nan, "<=", False),
        (math.nan, ">=", False),
    ],
)
def test_a_target_is_met_if_its_relation_holds(value: float, relation: str, met: bool) -> None:
    assert Target("x", value, 1.0, relation).met is met  # type: ignore[arg-type]


def test_json_carries_the_whole_report() -> None:
    value = json.loads(json.dumps(REPORT.to_dict()))
    assert [target["met"] for target in value["targets"]] == [False, True]
    assert value["raw"] == {"ms": [1.0, 2.0]}
    assert Report.from_dict(value) == REPORT


def test_json_has_null_for_what_is_no_number_and_the_target_is_still_not_met() -> None:
    target = Target("x", math.nan, 1.0)
    printed = dump_json(replace(REPORT, targets=(target,), raw={"ms": [math.inf]}).to_dict())
    value = parse_strictly(printed)
    assert value["targets"][0]["value"] is None and value["raw"] == {"ms": [None]}
    again = Report.from_dict(value)
    assert not again.targets[0].met and "| x | nan | ≤ 1.00 | no |" in again.to_markdown()


@pytest.mark.parametrize(
    "value", [{}, {"benchmark": "step"}, {**REPORT.to_dict(), "tables": [{"title": "x"}]}]
)
def test_what_is_no_report_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="report: got an object"):
        Report.from_dict(value)


def test_a_terminal_shows_figures_and_targets() -> None:
    out = io.StringIO()
    REPORT.print(Console(file=out, width=100))
    for text in ("Model 1", "(a) | left", "12.3", "≤ 1.15", "≥ 10.00", "no", "yes", "A note."):
        assert text in out.getvalue()


def test_markdown_has_a_row_per_figure() -> None:
    text = REPORT.to_markdown()
    assert "| (a) \\| left | 12.3 |" in text
    assert "| (e) / (c) | 1.20 | ≤ 1.15 | no |" in text


def test_a_section_of_a_document_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text("before\n<!-- begin step -->\nold\n<!-- end step -->\nafter\n", encoding="utf-8")
    for _ in range(2):
        replace_section(path, REPORT)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- begin step -->\n") and text.endswith("<!-- end step -->\nafter\n")
    assert "old" not in text and text.count("Machine:") == 1


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text("nothing here\n", encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="begin step"):
        replace_section(path, REPORT)
    assert path.read_text(encoding="utf-8") == "nothing here\n"


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, ""), (True, "yes"), (False, "no"), (0.123, "0.12"), (12.345, "12.3"), (1234.5, "1234"), (7, "7")],
)
def test_cells_have_as_many_digits_as_mean_something(cell: object, text: str) -> None:
    assert format_cell(cell) == text  # type: ignore[arg-type]
