"""The outcome of `braid bench graft-quality` as a picture. Knows only the report's raw figures."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from braid_orchestrator.bench.graft_quality import deviation
from braid_orchestrator.bench.report import Report
from braid_orchestrator.pictures import new_figure, save_figure

_COLOURS = {"graft": "#4269d0", "lora": "#efb118", "mlp": "#6cc5b0"}
_LABELS = {"graft": "grafted", "lora": "LoRA", "mlp": "MLP adapter"}


def plot_graft_quality(report: Report, path: Path) -> None:
    """Points per preset and method with their spread over seeds; and what leaving a component out costs.

    Raises: ConfigError without matplotlib.
    """
    models = list(report.raw["bare"])
    has_ablations = bool(report.raw["ablations"])
    figure = new_figure(5.2 * len(models), 6.4 if has_ablations else 3.4)
    grid = figure.subplots(2 if has_ablations else 1, len(models), squeeze=False)
    for column, model in enumerate(models):
        _draw_contest(grid[0][column], model, report.raw)
        if has_ablations:
            _draw_ablation(grid[1][column], model, report.raw)
    save_figure(figure, path)


def _draw_contest(axes: Any, model: str, raw: Any) -> None:
    contests = [one for one in raw["contests"] if one["model"] == model]
    presets = list(dict.fromkeys(one["preset"] for one in contests))
    methods = list(dict.fromkeys(one["method"] for one in contests))
    width = 0.5 / len(methods)
    for index, method in enumerate(methods):
        tests = [
            [result["test"] for result in one["results"]]
            for preset in presets
            for one in contests
            if (one["preset"], one["method"]) == (preset, method)
        ]
        axes.errorbar(
            [place + (index - (len(methods) - 1) / 2) * width for place in range(len(presets))],
            [fmean(values) for values in tests],
            yerr=[deviation(values) for values in tests],
            fmt="o",
            capsize=4,
            label=_LABELS[method],
            color=_COLOURS[method],
        )
    axes.set_xticks(range(len(presets)), presets)
    axes.set_title(f"{Path(model).name} (bare: {raw['bare'][model]['test']:.2f})")
    axes.grid(axis="y", alpha=0.3)
    axes.set_ylabel("bits per byte, test text")
    axes.legend(fontsize="small")


def _draw_ablation(axes: Any, model: str, raw: Any) -> None:
    whole = next(
        one
        for one in raw["contests"]
        if (one["model"], one["preset"], one["method"]) == (model, "full", "graft")
    )
    names = list(raw["ablations"][model])
    differences = [
        [
            result["test"] - full["test"]
            for result, full in zip(raw["ablations"][model][name], whole["results"], strict=True)
        ]
        for name in names
    ]
    axes.barh(
        names,
        [fmean(values) for values in differences],
        xerr=[deviation(values) for values in differences],
        color=_COLOURS["graft"],
    )
    axes.axvline(0.0, color="grey")
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("bits per byte more without it")
