"""One step: batches of any size make one loss, and what isn't finite changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from braid_fusion.errors import TrainingDataError, TrainingDivergedError
from braid_fusion.training import OptimiserConfig, Trainer, TrainerConfig

# Sums in another order, in float64.
ROUNDING = 1e-12


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=generator))

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Mean over the rows whose label isn't −100; of none it is not a number."""
        inputs, labels = batch
        loss = functional.cross_entropy(inputs @ self.weight, labels, ignore_index=-100)
        return {"loss": loss, "double": 2 * loss.detach(), "tokens": (labels != -100).sum()}


def make_batch(count: int, padding: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count + padding, 4, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (count + padding,), generator=generator)
    labels[count:] = -100
    return inputs, labels


def config(**values: Any) -> TrainerConfig:
    sgd_like = OptimiserConfig(learning_rate=0.1, weight_decay=0.1)
    return TrainerConfig(**{"max_steps": 1, "log_every": 1, "optimiser": sgd_like, **values})


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=5).filter(
        lambda sizes: sum(count for count, _ in sizes) > 0
    ),
    st.sampled_from([None, 0.01, 100.0]),
)
def test_batches_of_any_sizes_equal_one_large_batch(
    sizes: list[tuple[int, int]], clip_norm: float | None
) -> None:
    parts = [make_batch(*size, seed) for seed, size in enumerate(sizes)]
    whole = (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
    models, trainers = [Tagger(), Tagger()], []
    for model, batches in zip(models, (parts, [whole]), strict=True):
        trainer = Trainer(model, model.loss, batches, config(accumulate=len(batches), clip_norm=clip_norm))
        trainer.run()
        trainers.append(trainer)
    torch.testing.assert_close(models[0].weight, models[1].weight, atol=ROUNDING, rtol=ROUNDING)
    for name in ("loss", "double", "tokens", "gradient_norm"):
        figures = [trainer.history[0][name] for trainer in trainers]
        assert figures[0] == pytest.approx(figures[1], rel=ROUNDING), name


def test_a_step_without_any_token_is_refused() -> None:
    model = Tagger()
    trainer = Trainer(model, model.loss, [make_batch(0, 2, 0)] * 2, config(accumulate=2))
    with pytest.raises(TrainingDataError, match="step 0: got no token"):
        trainer.run()


def test_data_that_end_early_are_named() -> None:
    model = Tagger()
    trainer = Trainer(model, model.loss, [make_batch(2, 0, 0)] * 5, config(max_steps=4, accumulate=2))
    with pytest.raises(TrainingDataError, match="ended before step 2, batch 5"):
        trainer.run()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_what_is_not_finite_stops_and_changes_nothing(
    bad: float, where: str, clip_norm: float | None
) -> None:
    model, calls = Tagger(), 0
    before: list[Any] = []

    def note(progress: Any) -> None:
        if progress.step == 3:
            before.extend(copy.deepcopy([model.state_dict(), trainer._optimisers[0].state_dict()]))

    def loss(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        figures = model.loss(batch)
        if calls == 7:  # the first batch of step 3, counted from 0
            if where == "loss":
                figures["loss"] = figures["loss"] * bad
            else:
                figures["loss"].register_hook(lambda gradient: gradient * bad)
        return figures

    trainer = Trainer(
        model,
        loss,
        [make_batch(3, 0, seed) for seed in range(20)],
        config(max_steps=9, accumulate=2, clip_norm=clip_norm),
        on_progress=note,
    )
    # A gradient is judged when the whole step's is there, a loss at once.
    message = (
        r"^loss: got \S+ at step 3, batch 6"
        if where == "loss"
        else r"^gradient norm: .* at step 3, in one of batches 6 to 7, with a loss"
    )
    with pytest.raises(TrainingDivergedError, match=message):
        trainer.run()
    assert torch.equal(model.weight, before[0]["weight"])
    assert model.weight.grad is None
    state = trainer._optimisers[0].state_dict()["state"][0]
    for name, value in before[1]["state"][0].items():
        assert torch.equal(state[name], value), name
