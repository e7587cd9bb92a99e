"""A contest as a picture. Knows only the report's raw figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from braid_orchestrator.bench.graft_quality import deviation
from braid_orchestrator.bench.report import Report
from braid_orchestrator.bench.worth.contest import BRAID, ORACLE
from braid_orchestrator.bench.worth.measuring import TEST
from braid_orchestrator.pictures import new_figure, save_figure

_COLOURS = {BRAID: "#4269d0", ORACLE: "#aaaaaa"}
_OTHER = "#6cc5b0"


def plot_contest(report: Report, path: Path, *, rows: Sequence[str], texts: Sequence[str]) -> None:
    """Everybody's bits per byte on each text, with the spread over seeds.

    Raises: ConfigError without matplotlib.
    """
    seeds = [_rows(runs) for runs in report.raw["runs"].values()]
    figure = new_figure(4.2 * len(texts), 5.0)
    grid = figure.subplots(1, len(texts), sharey=True)
    for axes, text in zip(grid, texts, strict=True):
        _draw(axes, rows, {row: [of_seed[row][TEST][text] for of_seed in seeds] for row in rows})
        axes.set_title(text)
    grid[0].invert_yaxis()  # shared by all
    save_figure(figure, path)


def _rows(runs: dict[str, Any]) -> dict[str, Any]:
    return {row: figures for run in runs.values() for row, figures in run["figures"].items()}


def _draw(axes: Any, rows: Sequence[str], values: dict[str, list[float]]) -> None:
    for place, row in enumerate(rows):
        axes.errorbar(
            fmean(values[row]),
            place,
            xerr=deviation(values[row]),
            fmt="o",
            capsize=4,
            color=_COLOURS.get(row, _OTHER),
        )
    axes.axvline(fmean(values[BRAID]), color=_COLOURS[BRAID], alpha=0.3)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("bits per byte, test text")
    axes.grid(axis="x", alpha=0.3)
