"""`braid bench`: results can be shown again and put into a document; bad input is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from braid_orchestrator.bench.report import Report, Target
from braid_orchestrator.cli.main import app

REPORT = Report("naive", {"rounds": 3}, {"cores": 2}, (), (Target("times", 12.0, 10.0, ">="),))


@pytest.fixture
def result(tmp_path: Path) -> Path:
    path = tmp_path / "naive.json"
    path.write_text(json.dumps(REPORT.to_dict()), encoding="utf-8")
    return path


def test_a_saved_result_is_shown_again(result: Path) -> None:
    ran = CliRunner().invoke(app, ["bench", "render", str(result), "--markdown"])
    assert ran.exit_code == 0
    assert ran.stdout == REPORT.to_markdown()


def test_a_saved_result_goes_into_a_document(result: Path, tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("<!-- begin naive -->\n<!-- end naive -->\n", encoding="utf-8")
    ran = CliRunner().invoke(app, ["bench", "render", str(result), "--into", str(document)])
    assert ran.exit_code == 0
    assert REPORT.to_markdown() in document.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"{", "got no JSON"),
        (b"\x89PNG\xff", "got no JSON"),
        (b"[1]", "got [1]"),
        (b"{}", "lacks 'benchmark'"),
    ],
    ids=["broken", "bytes", "list", "empty"],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes, got: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    ran = CliRunner().invoke(app, ["bench", "render", str(path)])
    assert ran.exit_code == 2
    assert got in ran.stderr and "Traceback" not in ran.output


@pytest.mark.parametrize("option", [["--readout", "anchor"], ["--strategy", "unheard-of"], ["--tokens", "1"]])
def test_a_wrong_option_is_refused_before_anything_starts(option: list[str]) -> None:
    ran = CliRunner().invoke(app, ["bench", "step", "--quick", *option])
    assert ran.exit_code == 2
    assert "got" in ran.stderr or "Invalid value" in ran.stderr


@pytest.mark.parametrize(
    "command", ["worth keys", "worth specialists", f"graft-quality --model . --text {__file__}"]
)
def test_a_picture_that_has_nowhere_to_go_is_refused_before_anything_is_measured(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    given = ["--quick", "--plot", str(tmp_path / "file" / "picture.png")]
    ran = CliRunner().invoke(app, ["bench", *command.split(), *given])
    assert ran.exit_code == 1 and "Traceback" not in ran.output
    assert "plot: cannot be written" in ran.stderr and "Not a directory" in ran.stderr


def test_a_report_is_shown_before_its_picture_is_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(report: Report, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("braid_orchestrator.bench.worth.keys.run_keys", lambda *given: REPORT)
    monkeypatch.setattr("braid_orchestrator.bench.worth.key_plot.plot_keys", full)
    ran = CliRunner().invoke(app, ["bench", "worth", "keys", "--json", "--plot", str(tmp_path / "keys.png")])
    assert ran.exit_code == 1
    assert json.loads(ran.stdout)["benchmark"] == REPORT.benchmark
    assert "plot: cannot be written" in ran.stderr and "No space left" in ran.stderr
