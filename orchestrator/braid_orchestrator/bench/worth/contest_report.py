"""Tables of a contest, from the figures of all seeds. Runs nothing, and has no targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from braid_orchestrator import evaluation
from braid_orchestrator.bench.graft_quality import deviation
from braid_orchestrator.bench.report import Cell, Table, Target
from braid_orchestrator.bench.worth.contest import BRAID
from braid_orchestrator.bench.worth.contest_result import ContestResult
from braid_orchestrator.bench.worth.measuring import TEST, Figures
from braid_orchestrator.bench.worth.texts import MIX
from braid_orchestrator.bench.worth.timing import minutes_target
from braid_orchestrator.evaluation import (
    MeasuredText,
    Predictor,
    Resampling,
    TextReport,
    UnitSums,
    make_report,
)

Runs = Mapping[str, ContestResult]  # of one seed


def rows_of(runs: Runs) -> dict[str, Figures]:
    """All rows of one seed."""
    return {row: figures for result in runs.values() for row, figures in result.figures.items()}


@dataclass(frozen=True, slots=True)
class ContestReport:
    """``seeds`` have the same runs each. ``singles`` are the models alone, ``rows`` everybody, they among them, and
    ``texts`` the texts, `MIX` among them; all in the order of a table."""

    seeds: Sequence[Runs]
    singles: tuple[str, ...]
    rows: tuple[str, ...]
    texts: tuple[str, ...]

    def bits(self, row: str, text: str) -> list[float]:
        """Per byte of the test text, by seed."""
        return [rows_of(runs)[row][TEST][text] for runs in self.seeds]

    def mean_bits(self, row: str, text: str) -> float:
        """Over the seeds."""
        return fmean(self.bits(row, text))

    def best(self, rows: Iterable[str], text: str) -> str:
        """The row with the fewest bits."""
        return min(rows, key=lambda row: self.mean_bits(row, text))

    def below(self, row: str, text: str) -> float:
        """By how many percent of the row's bits the braid is below it."""
        return 100.0 * (1.0 - self.mean_bits(BRAID, text) / self.mean_bits(row, text))

    def intervals(self) -> dict[str, TextReport]:
        """Everybody on each test text with intervals over its windows, all seeds together: a window's bits are the
        sum over the seeds, which measure the same windows."""
        windows = [
            {row: found for result in runs.values() for row, found in result.windows.items()}
            for runs in self.seeds
        ]

        def column(row: str, text: str, name: str) -> Tensor:
            return torch.tensor([of_seed[row][text][name] for of_seed in windows], dtype=torch.float64).sum(0)

        measured = [
            MeasuredText(
                text,
                "window",
                1,
                {
                    self._predictor(row): UnitSums(
                        *(column(row, text, name) for name in ("bits", "bytes", "tokens"))
                    )
                    for row in self.rows
                },
            )
            for text in self.texts
        ]
        return {
            text.name: text for text in make_report(measured, Resampling()).texts if text.name in self.texts
        }

    def _predictor(self, row: str) -> Predictor:
        if row in self.singles:
            return Predictor("shard", row)
        known = {who.name: who for who in (evaluation.BRAID, evaluation.ORACLE)}
        return known.get(row, Predictor("baseline", row))

    def table(self, intervals: Mapping[str, TextReport]) -> Table:
        """Everybody's bits per byte, and on the mix how far they are from the braid."""
        rows: list[tuple[Cell, ...]] = []
        for row in self.rows:
            is_single = row in self.singles
            sizes = [runs[row].num_parameters for runs in self.seeds if row in runs and not is_single]
            cells: list[Cell] = [f"{row} alone" if is_single else row, sizes[0] if sizes else 0]
            for text in self.texts:
                values = self.bits(row, text)
                cells.append(f"{fmean(values):.4f} ± {deviation(values):.4f}")
            rows.append((*cells, _to_braid(intervals[MIX], row)))
        return Table(
            "Bits per byte of test text",
            ("who", "trained parameters", *self.texts, "mix, to the braid"),
            tuple(rows),
            "Mean and standard deviation over the seeds. To the braid: the difference on the mix, all seeds "
            "together, and its 95% bootstrap interval over the windows of the text. The oracle is a bound: "
            "nobody knows which model is best at a token.",
        )

    def costs(self, names: Mapping[str, str]) -> Table:
        """What the runs took. ``names``: of runs that have other names than their contestants."""
        rows: list[tuple[Cell, ...]] = [
            (
                names.get(who, who),
                fmean(runs[who].seconds for runs in self.seeds),
                max(runs[who].peak_mib for runs in self.seeds),
            )
            for who in self.seeds[0]
        ]
        in_turn_s = fmean(sum(result.seconds for result in runs.values()) for runs in self.seeds)
        rows.append(("all runs of a seed, one after the other", in_turn_s, None))
        return Table(
            "Cost of a run",
            ("run", "seconds", "peak memory, MiB"),
            tuple(rows),
            "Seconds: mean over the seeds, training and evaluation, on one core. Memory: the most that the run's "
            "process had had by its end.",
        )

    def minutes_target(self, stages: Sequence[Sequence[str]]) -> Target:
        """How long the slowest seed took. ``stages``: runs that wait for those of the stage before."""
        return minutes_target(
            ({who: result.seconds for who, result in runs.items()} for runs in self.seeds), stages
        )

    def raw(self, seeds: Sequence[int], intervals: Mapping[str, TextReport]) -> dict[str, Any]:
        """Plain values: the intervals, and all runs without the windows of which these are made."""
        return {
            "intervals": {text: asdict(report) for text, report in intervals.items()},
            "runs": {
                str(seed): {who: asdict(replace(result, windows={})) for who, result in runs.items()}
                for seed, runs in zip(seeds, self.seeds, strict=True)
            },
        }


def _to_braid(report: TextReport, row: str) -> str | None:
    difference = report.row(row).to_braid
    if difference is None:
        return None
    relative = difference.relative
    if relative.low is None or relative.high is None:
        return f"{relative.value:+.2%}"
    return f"{relative.value:+.2%} ({relative.low:+.2%} … {relative.high:+.2%})"
