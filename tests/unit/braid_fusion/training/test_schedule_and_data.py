"""Schedule, windows and the head's loss: the parts of training that are plain functions."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from braid_fusion.training import ScheduleConfig, TokenWindows, learning_rate_factor
from braid_fusion.training.losses import ROWS_AT_ONCE, linear_cross_entropy


@given(
    st.floats(0, 1),
    st.floats(0, 0.5),
    st.sampled_from(["cosine", "linear", "constant"]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_factor_stays_between_zero_and_one(
    progress: float, warmup: float, shape: str, decay_from: float, floor: float
) -> None:
    config = ScheduleConfig(warmup, shape, decay_from, floor)  # type: ignore[arg-type]
    assert 0.0 <= learning_rate_factor(progress, config) <= 1.0


def test_the_schedule_rises_stays_and_falls() -> None:
    config = ScheduleConfig(warmup=0.1, shape="linear", decay_from=0.5, floor=0.2)
    factors = [learning_rate_factor(progress, config) for progress in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
    assert factors == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.6, 0.2])
    cosine = ScheduleConfig(warmup=0.0, shape="cosine")
    assert learning_rate_factor(0.5, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(1.0, ScheduleConfig(shape="constant")) == 1.0


@pytest.mark.parametrize("values", [{"warmup": -0.1}, {"floor": 1.5}, {"shape": "square"}])
def test_wrong_schedules_are_named(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"schedule.{next(iter(values))}"):
        ScheduleConfig(**values)  # type: ignore[arg-type]


def test_an_epoch_of_windows_covers_the_text() -> None:
    tokens = torch.arange(100)
    windows = TokenWindows(tokens, length=8, batch_size=1, seed=3)
    epoch = torch.cat(list(itertools.islice(windows, 11)))
    predicted = sorted(epoch[:, 1:].flatten().tolist())
    assert len(set(predicted)) == len(predicted)  # each token once
    assert len(predicted) >= 100 - 3 * 8
    assert all((row[1:] - row[:-1] == 1).all() for row in epoch)


def test_windows_come_back_in_another_order_and_repeat_with_the_seed() -> None:
    tokens = torch.arange(1000)
    first, again, other = (
        torch.cat(list(itertools.islice(TokenWindows(tokens, 16, 4, seed), 40))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.int64
    assert first.shape == (160, 17)


def test_short_texts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least \(9,\)"):
        TokenWindows(torch.arange(8), length=8, batch_size=1)
    assert next(iter(TokenWindows(torch.arange(9), length=8, batch_size=2))).shape == (2, 9)


@pytest.mark.parametrize("num_rows", [1, ROWS_AT_ONCE, ROWS_AT_ONCE + 7])
def test_the_heads_loss_equals_the_plain_one(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    targets = torch.randint(50, (num_rows,), generator=generator)
    results = []
    for plain in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = functional.cross_entropy(h @ w.T, targets) if plain else linear_cross_entropy(h, w, targets)
        (3.0 * loss).backward()
        results.append((loss, h.grad, w.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("power", [1, 2])
def test_the_heads_loss_has_no_second_derivative_and_says_so(power: int) -> None:
    """Else what stands beside it, here the squares, would be differentiated twice, and the loss once."""
    hidden = torch.ones(2, 3, requires_grad=True)
    weight = torch.ones(5, 3, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1])) ** power + weight.square().sum()
    with pytest.raises(RuntimeError, match="_LinearCrossEntropy has no second derivative"):
        torch.autograd.grad(loss, [weight], create_graph=True)
