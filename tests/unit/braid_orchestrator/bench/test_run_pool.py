"""Runs come back in order, finished ones are not run again, and a failing one ends the rest with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from braid_orchestrator.bench.finished_runs import FinishedRuns
from braid_orchestrator.bench.run_pool import RunPool
from braid_rpc.errors import BraidError, UnavailableError


@dataclass(frozen=True)
class Spec:
    number: int


@dataclass(frozen=True)
class Result:
    square: int


class Squarer:
    def run(self, spec: Spec) -> Result:
        if spec.number < 0:
            raise ValueError(f"number: got {spec.number}")
        return Result(spec.number**2)


def test_results_come_in_order_and_finished_runs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.jsonl"
    finished = FinishedRuns(path, Spec, Result)
    finished.note(Spec(2), Result(1000))  # not what a run would give: so it was not run
    told: list[tuple[str, int, int]] = []
    with RunPool(
        Squarer, lambda spec: f"run {spec.number}", lambda *what: told.append(what), finished
    ) as pool:
        results = pool.run([Spec(3), Spec(2), Spec(4)])
        with pytest.raises(BraidError, match="number: got -1"):
            pool.run([Spec(-1)])
    assert [result.square for result in results] == [9, 1000, 16]
    assert sorted(done for _, done, _ in told) == [1, 2, 3]
    assert {total for _, _, total in told} == {3}
    assert FinishedRuns(path, Spec, Result).find(Spec(4)) == Result(16)


def unavailable() -> Squarer:
    raise UnavailableError("nobody")


def test_processes_start_only_where_a_run_is_not_finished(tmp_path: Path) -> None:
    finished = FinishedRuns(tmp_path / "runs.jsonl", Spec, Result)
    finished.note(Spec(2), Result(4))
    with RunPool(unavailable, lambda spec: "", lambda *what: None, finished) as pool:
        assert pool.run([Spec(2)]) == [Result(4)]
        with pytest.raises(BraidError, match="nobody"):
            pool.run([Spec(2), Spec(3)])
