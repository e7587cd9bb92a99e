"""Arithmetic over keys as a picture. Knows only the report's raw figures."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from braid_orchestrator.bench.report import Report
from braid_orchestrator.bench.worth.key_contestants import BRAID
from braid_orchestrator.bench.worth.key_exercises import TASKS
from braid_orchestrator.pictures import new_figure, save_figure

_BRAID, _OTHER = "#4269d0", "#6cc5b0"


def plot_keys(report: Report, path: Path) -> None:
    """The share of exercises that everybody solves, by task, with a dot per seed.

    Raises: ConfigError without matplotlib.
    """
    seeds = list(report.raw["runs"].values())
    everybody = list(seeds[0])
    figure = new_figure(3.4 * len(TASKS), 4.4)
    grid = figure.subplots(1, len(TASKS), sharey=True)
    for axes, task in zip(grid, TASKS, strict=True):
        for place, who in enumerate(everybody):
            values = [100.0 * runs[who]["solved"][task] for runs in seeds]
            axes.barh(place, fmean(values), color=_BRAID if who == BRAID else _OTHER)
            axes.plot(values, [place] * len(values), "k.", markersize=4)
        axes.set_xlim(0, 102)
        axes.set_title(task.replace(" unseen", "\nunseen"), fontsize=10)
        axes.set_xlabel("solved, %")
        axes.grid(axis="x", alpha=0.3)
    grid[0].set_yticks(range(len(everybody)), everybody)
    grid[0].invert_yaxis()  # shared by all
    save_figure(figure, path)
