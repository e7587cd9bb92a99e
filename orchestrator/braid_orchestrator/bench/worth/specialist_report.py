"""Tables and targets of the experiment with two specialists, from the figures of all seeds. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from braid_orchestrator.bench.graft_quality import deviation
from braid_orchestrator.bench.report import Cell, Table, Target
from braid_orchestrator.bench.worth.specialist_contestants import BRAID, GATE, NO_CROSS, TRAINED, WIDE_GATE
from braid_orchestrator.bench.worth.specialist_parents import KINDS, START
from braid_orchestrator.bench.worth.specialist_runs import (
    ORACLE,
    POSTERIOR,
    SOUP,
    TEST,
    UNIFORM,
    UNTRAINED,
    Figures,
    SpecialistResult,
)
from braid_orchestrator.bench.worth.specialist_texts import MIX, TEXTS

Rows = Mapping[str, Figures]  # of one seed
ROWS = (*KINDS, SOUP, UNIFORM, POSTERIOR, *TRAINED, ORACLE)
GATES = (GATE, WIDE_GATE)


def mean_bits(seeds: Sequence[Rows], row: str, text: str) -> float:
    """Of the test text, over the seeds."""
    return fmean(rows[row][TEST][text] for rows in seeds)


def contest_table(seeds: Sequence[Rows], results: Sequence[Mapping[str, SpecialistResult]]) -> Table:
    """Everybody's bits per byte."""
    rows: list[tuple[Cell, ...]] = []
    for row in ROWS:
        sizes = [by_run[row].num_parameters for by_run in results if row in by_run and row not in KINDS]
        cells: list[Cell] = [f"{row} alone" if row in KINDS else row, sizes[0] if sizes else 0]
        for text in TEXTS:
            values = [rows_of_seed[row][TEST][text] for rows_of_seed in seeds]
            cells.append(f"{fmean(values):.4f} ± {deviation(values):.4f}")
        rows.append(tuple(cells))
    return Table(
        "Bits per byte of test text",
        ("who", "trained parameters", *TEXTS),
        tuple(rows),
        "Mean and standard deviation over the seeds.",
    )


def cost_table(results: Sequence[Mapping[str, SpecialistResult]]) -> Table:
    """What the runs took."""
    rows = [
        (
            _run_name(who),
            fmean(by_run[who].seconds for by_run in results),
            max(by_run[who].peak_mib for by_run in results),
        )
        for who in results[0]
    ]
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
    """Ratios of mean bits per byte; the braid's stands above the line in each."""
    braid = {text: mean_bits(seeds, BRAID, text) for text in TEXTS}
    gate = min(mean_bits(seeds, row, MIX) for row in GATES)
    others = [row for row in ROWS if row not in (BRAID, ORACLE)]
    best_other = min(mean_bits(seeds, row, MIX) for row in others)
    return (
        Target("mix: braid / gate per token, the better one", braid[MIX] / gate, 0.97),
        Target("mix: braid / no-cross control", braid[MIX] / mean_bits(seeds, NO_CROSS, MIX), 0.99),
        *(
            Target(
                f"{kind}: braid / better specialist",
                braid[kind] / min(mean_bits(seeds, one, kind) for one in KINDS),
                1.005,
            )
            for kind in KINDS
        ),
        Target("mix: braid / best of all others", braid[MIX] / best_other, 1.0, "<"),
    )
