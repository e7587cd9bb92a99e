"""Tables and targets of the experiment with two specialists, from the figures of all seeds. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from braid_orchestrator import evaluation
from braid_orchestrator.bench.graft_quality import deviation
from braid_orchestrator.bench.report import Cell, Table, Target
from braid_orchestrator.bench.worth.specialist_contestants import (
    BRAID,
    CONTROLS,
    GATE,
    HISTORY_GATE,
    TRAINED,
    WIDE_GATE,
)
from braid_orchestrator.bench.worth.specialist_measuring import TEST, Figures
from braid_orchestrator.bench.worth.specialist_parents import KINDS, START
from braid_orchestrator.bench.worth.specialist_runs import SOUP, UNTRAINED, SpecialistResult
from braid_orchestrator.bench.worth.specialist_texts import MIX, TEXTS
from braid_orchestrator.evaluation import (
    MeasuredText,
    Predictor,
    Resampling,
    TextReport,
    UnitSums,
    make_report,
)

Rows = Mapping[str, Figures]  # of one seed
Runs = Mapping[str, SpecialistResult]  # of one seed
UNIFORM, POSTERIOR, ORACLE = (
    who.name for who in (evaluation.UNIFORM, evaluation.POSTERIOR, evaluation.ORACLE)
)
ROWS = (*KINDS, SOUP, UNIFORM, POSTERIOR, *TRAINED, ORACLE)
GATES = (GATE, WIDE_GATE, HISTORY_GATE)


def mean_bits(seeds: Sequence[Rows], row: str, text: str) -> float:
    """Of the test text, over the seeds."""
    return fmean(rows[row][TEST][text] for rows in seeds)


def text_reports(results: Sequence[Runs]) -> dict[str, TextReport]:
    """Everybody on each test text with intervals over its windows, all seeds together: a window's bits are the sum
    over the seeds, which measure the same windows."""
    windows = [
        {row: found for result in runs.values() for row, found in result.windows.items()} for runs in results
    ]

    def column(row: str, text: str, name: str) -> Tensor:
        return torch.tensor([of_seed[row][text][name] for of_seed in windows], dtype=torch.float64).sum(0)

    measured = [
        MeasuredText(
            text,
            "window",
            1,
            {
                _predictor(row): UnitSums(*(column(row, text, name) for name in ("bits", "bytes", "tokens")))
                for row in ROWS
            },
        )
        for text in TEXTS
    ]
    return {text.name: text for text in make_report(measured, Resampling()).texts if text.name in TEXTS}


def _predictor(row: str) -> Predictor:
    if row in KINDS:
        return Predictor("shard", row)
    known = {who.name: who for who in (evaluation.BRAID, evaluation.ORACLE)}
    return known.get(row, Predictor("baseline", row))


def contest_table(results: Sequence[Runs], reports: Mapping[str, TextReport]) -> Table:
    """Everybody's bits per byte, and on the mix how far they are from the braid."""
    seeds = [rows_of(runs) for runs in results]
    rows: list[tuple[Cell, ...]] = []
    for row in ROWS:
        sizes = [by_run[row].num_parameters for by_run in results if row in by_run and row not in KINDS]
        cells: list[Cell] = [f"{row} alone" if row in KINDS else row, sizes[0] if sizes else 0]
        for text in TEXTS:
            values = [rows_of_seed[row][TEST][text] for rows_of_seed in seeds]
            cells.append(f"{fmean(values):.4f} ± {deviation(values):.4f}")
        rows.append((*cells, _to_braid(reports[MIX], row)))
    return Table(
        "Bits per byte of test text",
        ("who", "trained parameters", *TEXTS, "mix, to the braid"),
        tuple(rows),
        "Mean and standard deviation over the seeds. To the braid: the difference on the mix, all seeds together, "
        "and its 95% bootstrap interval over the windows of the text. The oracle is a bound: nobody knows which "
        "specialist is best at a token.",
    )


def _to_braid(report: TextReport, row: str) -> str | None:
    difference = report.row(row).to_braid
    if difference is None:
        return None
    relative = difference.relative
    if relative.low is None or relative.high is None:
        return f"{relative.value:+.2%}"
    return f"{relative.value:+.2%} ({relative.low:+.2%} … {relative.high:+.2%})"


def rows_of(runs: Runs) -> dict[str, Figures]:
    """All rows of one seed."""
    return {row: figures for result in runs.values() for row, figures in result.figures.items()}


def cost_table(results: Sequence[Runs]) -> Table:
    """What the runs took."""
    rows: list[tuple[Cell, ...]] = [
        (
            _run_name(who),
            fmean(by_run[who].seconds for by_run in results),
            max(by_run[who].peak_mib for by_run in results),
        )
        for who in results[0]
    ]
    in_turn_s = fmean(sum(result.seconds for result in by_run.values()) for by_run in results)
    rows.append(("all runs of a seed, one after the other", in_turn_s, None))
    return Table(
        "Cost of a run",
        ("run", "seconds", "peak memory, MiB"),
        tuple(rows),
        "Seconds: mean over the seeds, training and evaluation, on one core. Memory: the most that the run's process "
        "had had by its end.",
    )


def _run_name(who: str) -> str:
    if who == START:
        return "the common start"
    if who in KINDS:
        return f"the specialist for {who}"
    return "singles and their ensembles" if who == UNTRAINED else who


def specialist_targets(seeds: Sequence[Rows]) -> tuple[Target, ...]:
    """What the braid is to reach, on the means over the seeds. Of the gates and of the controls the best counts."""

    def below(text: str, row: str) -> float:
        """By how many percent of the row's bits the braid is below it."""
        return 100.0 * (1.0 - mean_bits(seeds, BRAID, text) / mean_bits(seeds, row, text))

    others = [row for row in ROWS if row not in (BRAID, ORACLE)]
    nearest = min(others, key=lambda row: mean_bits(seeds, row, MIX))
    gate = min(GATES, key=lambda row: mean_bits(seeds, row, MIX))
    control = min(CONTROLS, key=lambda row: mean_bits(seeds, row, MIX))
    bound = mean_bits(seeds, ORACLE, MIX)
    distance = (mean_bits(seeds, BRAID, MIX) - bound) / (mean_bits(seeds, nearest, MIX) - bound)
    better = {text: min(KINDS, key=lambda kind: mean_bits(seeds, kind, text)) for text in KINDS}
    return (
        Target(f"mix: braid below the {gate}", below(MIX, gate), 3.0, ">=", "%"),
        Target(f"mix: braid below the {control}", below(MIX, control), 1.0, ">=", "%"),
        *(
            Target(f"{text}: braid above the better specialist", -below(text, better[text]), 0.5, "<=", "%")
            for text in KINDS
        ),
        Target(f"mix: distance to the oracle, braid / {nearest}", distance, 1.0, "<"),
    )
