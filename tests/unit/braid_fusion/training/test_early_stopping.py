"""The best evaluation's weights are kept and put back, and patience ends a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from training_runs import windows

from braid_fusion.errors import TrainingConfigError
from braid_fusion.training import EarlyStopping, Trainer, TrainerConfig, TrainingRecord
from braid_fusion.training.early_stopping import StopWatch


class Number(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(2))


def run(
    figures: list[float], early_stopping: EarlyStopping, folder: Path | None = None
) -> tuple[TrainingRecord, list[Tensor], Number]:
    """Evaluations give the figures one after the other. Returns the weights at each as well."""
    model, seen = Number(), []

    def evaluate() -> Mapping[str, float]:
        seen.append(model.value.detach().clone())
        return {"score": figures[len(seen) - 1], "other": 0.0}

    config = TrainerConfig(len(figures) * 2, evaluate_every=2, early_stopping=early_stopping)
    trainer = Trainer(
        model,
        lambda _: (model.value - 3.0).square().sum(),
        windows(),
        config,
        evaluate=evaluate,
        checkpoint_folder=folder,
    )
    return trainer.run(), seen, model


@pytest.mark.parametrize(
    ("figures", "config", "best", "num_evaluations"),
    [
        ([3.0, 2.0, 2.5, 2.4, 1.0, 0.5], EarlyStopping(2, figure="score"), 1, 4),
        ([3.0, 2.0, 2.5, 1.9, 1.95, 2.0, 0.1], EarlyStopping(2, figure="score"), 3, 6),
        ([3.0, 2.9, 2.8, 0.0], EarlyStopping(2, min_delta=0.5, figure="score"), 0, 3),
        ([3.0, 2.5, 2.5, 0.0], EarlyStopping(1, min_delta=0.5, figure="score"), 0, 2),
        ([1.0, 2.0, 3.0, 2.0, 2.9, 5.0], EarlyStopping(2, figure="score", higher_is_better=True), 2, 5),
        ([float("nan"), 2.0, float("nan"), float("nan"), 0.0], EarlyStopping(2, figure="score"), 1, 4),
        ([3.0, 1.0, 2.0, 4.0, 4.0, 4.0], EarlyStopping(None, figure="score"), 1, 6),
    ],
)
def test_patience_ends_a_run_and_the_best_weights_come_back(
    tmp_path: Path, figures: list[float], config: EarlyStopping, best: int, num_evaluations: int
) -> None:
    record, weights, model = run(figures, config, tmp_path)
    assert len(weights) == len(record.evaluations) == num_evaluations
    assert record.stopped_by == ("early_stopping" if config.patience else "steps")
    assert (record.best_step, record.best_value) == (2 * (best + 1), figures[best])
    assert torch.equal(model.value, weights[best])
    assert not torch.equal(weights[best], weights[-1])
    assert torch.equal(load_file(tmp_path / "best.safetensors")["value"], weights[best])


def test_without_it_the_last_weights_stay() -> None:
    model = Number()
    config = TrainerConfig(4, evaluate_every=1)
    calls = iter([1.0, 2.0, 3.0, 4.0])
    seen: list[Tensor] = []

    def evaluate() -> Mapping[str, float]:
        seen.append(model.value.detach().clone())
        return {"loss": next(calls)}

    trainer = Trainer(
        model, lambda _: (model.value - 3.0).square().sum(), windows(), config, evaluate=evaluate
    )
    assert trainer.run().best_step is None
    assert torch.equal(model.value, seen[-1])


def test_a_figure_that_is_not_there_is_named() -> None:
    with pytest.raises(
        TrainingConfigError, match="got 'loss', expected one of the evaluation's: score, other"
    ):
        run([1.0], EarlyStopping())


@pytest.mark.parametrize(
    "values",
    [{"patience": 0}, {"min_delta": -1.0}, {"min_delta": float("nan")}, {"min_delta": float("inf")}],
)
def test_wrong_settings_are_named(values: dict[str, float]) -> None:
    with pytest.raises(TrainingConfigError, match=f"early_stopping.{next(iter(values))}: got"):
        EarlyStopping(**values)  # type: ignore[arg-type]


def test_the_watch_goes_on_where_it_was() -> None:
    config = EarlyStopping(2)
    first, second = StopWatch(config), StopWatch(config)
    for step, loss in enumerate([3.0, 2.0, 4.0]):
        first.note(step, {"loss": loss})
    second.load_state_dict(first.state_dict())
    assert not second.is_over
    assert not second.note(3, {"loss": 2.0})
    assert second.is_over and second.best_step == 1
