"""The training loop: it ends by steps or by time, clips, evaluates, logs, and never trains what is frozen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from braid_fusion.errors import NonFiniteStateError, TrainingConfigError
from braid_fusion.training import (
    EarlyStopping,
    OptimiserConfig,
    Progress,
    ScheduleConfig,
    Trainer,
    TrainerConfig,
    TrainingDivergedError,
)
from braid_fusion.training.checkpoint import steps_in


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(3, 1)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return (self.map(inputs * self.frozen)[:, 0] - targets).square().mean()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        inputs = torch.randn(32, 3, generator=generator)
        yield inputs, inputs @ torch.tensor([1.0, -2.0, 0.5]) + 3.0


class SameBatches:
    """The first of them again and again."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat(next(batches()))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def config(**values: object) -> TrainerConfig:
    defaults: dict[str, object] = {"max_steps": 150, "optimiser": OptimiserConfig(learning_rate=0.1)}
    return TrainerConfig(**{**defaults, **values})  # type: ignore[arg-type]


def test_it_learns_and_leaves_frozen_parameters_alone() -> None:
    model = Line()
    record = Trainer(model, model.loss, batches(), config()).run()
    torch.testing.assert_close(
        model.map.weight.detach(), torch.tensor([[1.0, -2.0, 0.5]]), atol=0.02, rtol=0.0
    )
    assert record.steps == 150
    assert record.stopped_by == "steps"
    assert record.num_parameters == 4
    assert torch.equal(model.frozen, torch.ones(3))
    assert not model.training


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_a_single_step_is_a_step(shape: Any) -> None:
    model = Line()
    before = model.map.weight.detach().clone()
    Trainer(model, model.loss, batches(), config(max_steps=1, schedule=ScheduleConfig(shape=shape))).run()
    assert (model.map.weight - before).abs().max() > 0.01


def test_the_same_seeds_train_the_same() -> None:
    models = [Line(), Line()]
    for model in models:
        Trainer(model, model.loss, batches(), config(max_steps=10)).run()
    assert torch.equal(models[0].map.weight, models[1].map.weight)


def test_time_ends_a_run_with_a_finished_schedule() -> None:
    model = Line()
    clock = itertools.count(0.0, 1.0)
    seen: list[Progress] = []
    rates: list[float] = []
    trainer = Trainer(
        model,
        model.loss,
        batches(),
        config(max_steps=10_000, max_seconds=50.0, schedule=ScheduleConfig(warmup=0.0, shape="linear")),
        on_progress=lambda progress: (seen.append(progress), rates.append(_rate(trainer)))[0],
        clock=lambda: next(clock),
    )
    record = trainer.run()
    assert record.stopped_by == "seconds"
    assert record.steps == 50
    assert seen[-1].fraction == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.03 * rates[0]


def _rate(trainer: Trainer[tuple[Tensor, Tensor]]) -> float:
    return float(trainer._optimisers[0].param_groups[0]["lr"])


def test_accumulation_equals_one_large_batch() -> None:
    source = batches()
    parts = [next(source) for _ in range(4)]
    whole = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    models = [Line(), Line()]
    Trainer(models[0], models[0].loss, iter(parts), config(max_steps=1, accumulate=4, clip_norm=None)).run()
    Trainer(models[1], models[1].loss, iter([whole]), config(max_steps=1, clip_norm=None)).run()  # type: ignore[list-item]
    torch.testing.assert_close(models[0].map.weight, models[1].map.weight)


def test_gradients_are_clipped() -> None:
    model = Line()
    largest: list[float] = []

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return model.loss(batch) * 1e4

    trainer = Trainer(model, loss, batches(), config(max_steps=1, clip_norm=0.5))
    for optimiser in trainer._optimisers:
        optimiser.register_step_pre_hook(
            lambda *_: largest.append(
                float(torch.cat([p.grad.flatten() for p in model.map.parameters()]).norm())  # type: ignore[union-attr]
            )
        )
    trainer.run()
    assert largest[0] == pytest.approx(0.5, rel=1e-3)


def test_a_diverged_loss_is_an_error_that_says_where() -> None:
    model = Line()
    calls = itertools.count()

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return model.loss(batch) * (torch.nan if next(calls) == 3 else 1.0)

    with pytest.raises(TrainingDivergedError, match="step 3"):
        Trainer(model, loss, batches(), config()).run()
    assert model.map.weight.isfinite().all()  # the bad step was not taken


def broken_by_its_last_update(folder: Path | None = None, **options: Any) -> Trainer[tuple[Tensor, Tensor]]:
    model, stopping = Line(), options.pop("early_stopping", None)

    @torch.no_grad()
    def evaluate() -> dict[str, Tensor]:
        return {"loss": model.loss(next(batches()))}

    trainer = Trainer(
        model,
        model.loss,
        SameBatches(),
        config(max_steps=5, checkpoint_every=1, early_stopping=stopping, **options.pop("config", {})),
        evaluate=evaluate if options.pop("evaluates") else None,
        checkpoint_folder=folder,
    )

    def spoil(*_: object) -> None:
        if trainer._state.position.step == 4:
            with torch.no_grad():
                model.map.weight.fill_(1e30)

    trainer._optimisers[0].register_step_post_hook(spoil)
    return trainer


@pytest.mark.parametrize("evaluates", [True, False])
def test_a_run_that_its_last_update_breaks_is_no_success(tmp_path: Path, evaluates: bool) -> None:
    told = "^loss: got (inf|nan) after the last step, 4, expected a finite number$"
    with pytest.raises(TrainingDivergedError, match=told):
        broken_by_its_last_update(tmp_path, evaluates=evaluates).run()
    assert max(step for step, _ in steps_in(tmp_path)) == 4
    with pytest.raises(TrainingDivergedError, match=told):
        broken_by_its_last_update(tmp_path, evaluates=evaluates).run(resume_from=tmp_path)


def test_weights_that_fail_at_the_end_are_not_kept(tmp_path: Path) -> None:
    def trainer() -> Trainer[tuple[Tensor, Tensor]]:
        broken = broken_by_its_last_update(tmp_path, evaluates=False)
        loss_of = broken._step._loss_of

        def loss(batch: tuple[Tensor, Tensor]) -> Any:
            if float(broken.module.map.weight.detach().abs().max()) > 1e6:
                raise NonFiniteStateError(0, 0, 0, 1)
            return loss_of(batch)

        broken._step._loss_of = loss
        return broken

    for resume_from in (None, tmp_path):
        with pytest.raises(NonFiniteStateError):
            trainer().run(resume_from=resume_from)
        assert max(step for step, _ in steps_in(tmp_path)) == 4


def test_with_a_good_evaluation_to_go_back_to_it_is() -> None:
    trainer = broken_by_its_last_update(
        evaluates=True, early_stopping=EarlyStopping(None), config={"evaluate_every": 2}
    )
    record = trainer.run()
    assert record.best_step == 4 and trainer.module.map.weight.abs().max() < 10.0


def test_evaluations_run_without_gradients_in_evaluation_mode() -> None:
    model = Line()
    modes: list[tuple[bool, bool]] = []

    def evaluate() -> dict[str, float]:
        modes.append((model.training, torch.is_grad_enabled()))
        return {"score": float(len(modes))}

    record = Trainer(
        model, model.loss, batches(), config(max_steps=25, evaluate_every=10), evaluate=evaluate
    ).run()
    assert modes == [(False, False)] * 3
    assert [(e.step, e.values["score"]) for e in record.evaluations] == [(10, 1.0), (20, 2.0), (25, 3.0)]


def test_the_log_has_a_line_per_period(tmp_path: Path) -> None:
    model = Line()

    def loss(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        value = model.loss(batch)
        return {"loss": value, "weight": model.map.weight.detach()[0, 0]}

    path = tmp_path / "deep" / "log.jsonl"
    record = Trainer(model, loss, batches(), config(max_steps=25, log_every=10), log_path=path).run()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 25]
    assert all({"loss", "weight", "gradient_norm", "seconds"} <= line.keys() for line in lines)
    assert json.dumps(record.to_dict())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"max_seconds": 0.0}, "max_seconds"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**values)


@pytest.mark.parametrize(
    ("key", "bad", "expected"),
    [
        (key, bad, "a positive finite number, or None")
        for key in ("clip_norm", "max_seconds")
        for bad in (0.0, -1.0, float("nan"), float("inf"))
    ]
    + [("max_steps", 0, "at least 1"), ("max_steps", float("nan"), "at least 1")],
)
def test_numbers_that_no_run_can_be_made_with_are_named(key: str, bad: float, expected: str) -> None:
    with pytest.raises(TrainingConfigError) as refused:
        config(**{key: bad})
    assert str(refused.value) == f"training.{key}: got {bad}, expected {expected}"
