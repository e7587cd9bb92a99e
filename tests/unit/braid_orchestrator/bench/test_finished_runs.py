"""A run that is finished is not run again, and nothing else is taken for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from braid_orchestrator.bench.finished_runs import FinishedRuns
from braid_orchestrator.bench.graft_runs import RunResult, RunSpec
from braid_rpc.errors import InvalidRequestError

SPEC = RunSpec("model", "text", "graft", "full", seed=1)
RESULT = RunResult(2.0, 2.5, 17, 0.5)


def test_a_result_is_found_again_for_an_equal_run_only(tmp_path: Path) -> None:
    runs = FinishedRuns(tmp_path / "runs.jsonl", RunSpec, RunResult)
    runs.note(SPEC, RESULT)
    again = FinishedRuns(tmp_path / "runs.jsonl", RunSpec, RunResult)
    for found in (runs, again):
        assert found.find(SPEC) == RESULT
        for change in ({"seed": 2}, {"without": "prime"}, {"num_steps": 3}, {"model": "other"}):
            assert found.find(replace(SPEC, **change)) is None


def test_without_a_file_nothing_is_kept() -> None:
    runs = FinishedRuns(None, RunSpec, RunResult)
    runs.note(SPEC, RESULT)
    assert runs.find(SPEC) is None


def test_a_line_that_was_cut_off_at_the_end_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    FinishedRuns(path, RunSpec, RunResult).note(SPEC, RESULT)
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    assert FinishedRuns(path, RunSpec, RunResult).find(SPEC) == RESULT


def test_anything_else_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"spec": 1}\n')
    with pytest.raises(InvalidRequestError, match=r"runs\.jsonl, line 1"):
        FinishedRuns(path, RunSpec, RunResult)
