"""The experiment with two specialists as a picture. Knows only the report's raw figures."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from braid_orchestrator.bench.graft_quality import deviation
from braid_orchestrator.bench.report import Report
from braid_orchestrator.bench.worth.specialist_contestants import BRAID
from braid_orchestrator.bench.worth.specialist_measuring import TEST
from braid_orchestrator.bench.worth.specialist_report import ORACLE, ROWS
from braid_orchestrator.bench.worth.specialist_texts import TEXTS
from braid_orchestrator.pictures import new_figure, save_figure

_COLOURS = {BRAID: "#4269d0", ORACLE: "#aaaaaa"}
_OTHER = "#6cc5b0"


def plot_specialists(report: Report, path: Path) -> None:
    """Everybody's bits per byte on each text, with the spread over seeds.

    Raises: ConfigError without matplotlib.
    """
    seeds = [_rows(runs) for runs in report.raw["runs"].values()]
    figure = new_figure(4.2 * len(TEXTS), 5.0)
    grid = figure.subplots(1, len(TEXTS), sharey=True)
    for axes, text in zip(grid, TEXTS, strict=True):
        _draw(axes, text, seeds)
    grid[0].invert_yaxis()  # shared by all
    save_figure(figure, path)


def _rows(runs: dict[str, Any]) -> dict[str, Any]:
    return {row: figures for run in runs.values() for row, figures in run["figures"].items()}


def _draw(axes: Any, text: str, seeds: list[dict[str, Any]]) -> None:
    values = {row: [rows[row][TEST][text] for rows in seeds] for row in ROWS}
    for place, row in enumerate(ROWS):
        axes.errorbar(
            fmean(values[row]),
            place,
            xerr=deviation(values[row]),
            fmt="o",
            capsize=4,
            color=_COLOURS.get(row, _OTHER),
        )
    axes.axvline(fmean(values[BRAID]), color=_COLOURS[BRAID], alpha=0.3)
    axes.set_yticks(range(len(ROWS)), ROWS)
    axes.set_title(text)
    axes.set_xlabel("bits per byte, test text")
    axes.grid(axis="x", alpha=0.3)
