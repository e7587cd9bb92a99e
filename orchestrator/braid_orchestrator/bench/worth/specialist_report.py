"""Tables and targets of the experiment with two specialists, from the figures of all seeds. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from braid_orchestrator.bench.graft_quality import deviation
from braid_orchestrator.bench.report import Cell, Table, Target
from braid_orchestrator.bench.worth.specialist_contestants import (
    BRAID,
    GATE,
    HISTORY_GATE,
    NO_CROSS,
    TRAINED,
    WIDE_GATE,
)
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
ROWS = (
    *KINDS,
    SOUP,
    UNIFORM,
    POSTERIOR,
    *(who for who in TRAINED if who not in (NO_CROSS, BRAID)),
    NO_CROSS,
    BRAID,
    ORACLE,
)
GATES = (GATE, WIDE_GATE, HISTORY_GATE)


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
    """What the braid is to reach, on the means over the seeds."""

    def below(text: str, row: str) -> float:
        """By how many percent of the row's bits the braid is below it."""
        return 100.0 * (1.0 - mean_bits(seeds, BRAID, text) / mean_bits(seeds, row, text))

    others = [row for row in ROWS if row not in (BRAID, ORACLE)]
    nearest = min(others, key=lambda row: mean_bits(seeds, row, MIX))
    gate = min(GATES, key=lambda row: mean_bits(seeds, row, MIX))
    bound = mean_bits(seeds, ORACLE, MIX)
    distance = (mean_bits(seeds, BRAID, MIX) - bound) / (mean_bits(seeds, nearest, MIX) - bound)
    better = {text: min(KINDS, key=lambda kind: mean_bits(seeds, kind, text)) for text in KINDS}
    return (
        Target(f"mix: braid below the {gate}", below(MIX, gate), 3.0, ">=", "%"),
        Target(f"mix: braid below the {NO_CROSS}", below(MIX, NO_CROSS), 1.0, ">=", "%"),
        *(
            Target(f"{text}: braid above the better specialist", -below(text, better[text]), 0.5, "<=", "%")
            for text in KINDS
        ),
        Target(f"mix: distance to the oracle, braid / {nearest}", distance, 1.0, "<"),
    )
