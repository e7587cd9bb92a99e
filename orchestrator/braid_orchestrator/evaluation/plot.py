"""A report as a picture: a bar for each predictor and text, with its interval. Draws without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from braid_orchestrator.evaluation.intervals import Estimate
from braid_orchestrator.evaluation.report import Report
from braid_orchestrator.pictures import new_figure, save_figure

_COLOURS = {"shard": "tab:blue", "baseline": "tab:gray", "braid": "tab:orange", "bound": "lightgray"}


def plot_report(report: Report, path: Path) -> None:
    """Write a PNG: a row of bars for each text, bits per byte, and accuracy beside them where it was asked for.

    Raises: ConfigError if matplotlib isn't installed; OSError.
    """
    has_accuracy = all(row.accuracy is not None for text in report.texts for row in text.rows)
    num_columns = 2 if has_accuracy else 1
    num_bars = max(len(text.rows) for text in report.texts)
    picture = new_figure(6.5 * num_columns, (0.32 * num_bars + 0.8) * len(report.texts))
    grid = picture.subplots(len(report.texts), num_columns, squeeze=False)
    for text, places in zip(report.texts, grid, strict=True):
        names = [row.name for row in text.rows]
        colours = [_COLOURS[row.kind] for row in text.rows]
        _bars(places[0], names, [row.bits_per_byte for row in text.rows], colours, ".3f")
        places[0].set_title(f"{text.name}: bits per byte", fontsize="medium", loc="left")
        if has_accuracy:
            shares = [row.accuracy for row in text.rows if row.accuracy is not None]
            _bars(places[1], names, shares, colours, ".1%")
            places[1].set_title("accuracy", fontsize="medium", loc="left")
    save_figure(picture, path)


def _bars(axes: Any, names: list[str], estimates: list[Estimate], colours: list[str], form: str) -> None:
    positions = range(len(names))
    values = [estimate.value for estimate in estimates]
    below = [0.0 if one.low is None else max(0.0, one.value - one.low) for one in estimates]
    above = [0.0 if one.high is None else max(0.0, one.high - one.value) for one in estimates]
    axes.barh(positions, values, xerr=[below, above], color=colours, ecolor="black", capsize=2)
    axes.set_yticks(positions, names)
    axes.invert_yaxis()
    for position, value in zip(positions, values, strict=True):
        axes.annotate(
            format(value, form),
            (0.0, position),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
