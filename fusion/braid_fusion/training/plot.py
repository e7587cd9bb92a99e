"""A run's log as a picture: loss, evaluations, learning rate over steps. Draws without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from braid_fusion.errors import TrainingError
from braid_fusion.training.run_log import read_log


def plot_training(log: Path | Sequence[Mapping[str, Any]], path: Path, *, figure: str = "loss") -> None:
    """Write a PNG of a log, given as a file or as its lines.

    Args:
        figure: which of the evaluations' figures is drawn beside the training loss.

    Raises: TrainingError if matplotlib isn't installed, or the log has no step in it.
    """
    lines = read_log(log) if isinstance(log, Path) else list(log)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if figure in line.get("evaluation", {})]
    if not steps:
        raise TrainingError(f"plot: got a log of {len(lines)} lines without a loss, expected at least one")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TrainingError(
            "plot: matplotlib is not installed, expected the extra `plots`: pip install '.[plots]'"
        ) from error
    picture = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(picture)
    left = picture.add_subplot()
    left.set_xlabel("step")
    left.set_ylabel("loss, nats per token")
    numbers = [line["step"] for line in steps]
    left.plot(numbers, [line["loss"] for line in steps], color="tab:blue", alpha=0.35, label="loss")
    left.plot(numbers, [line["smoothed_loss"] for line in steps], color="tab:blue", label="loss, smoothed")
    if evaluations:
        left.plot(
            [line["step"] for line in evaluations],
            [line["evaluation"][figure] for line in evaluations],
            color="tab:orange",
            marker="o",
            label=f"evaluation: {figure}",
        )
    right = left.twinx()
    right.set_ylabel("learning rate")
    right.plot(
        numbers,
        [line["learning_rate"] for line in steps],
        color="tab:gray",
        linestyle=":",
        label="learning rate",
    )
    left.legend(handles=[*left.get_lines(), *right.get_lines()], loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120, format="png")
