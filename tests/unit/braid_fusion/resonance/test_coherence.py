"""Entropy and coherence of prime states, and a gate that is neither shut nor open at the start."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.resonance import coherence as measures
from braid_fusion.resonance.coherence import CoherenceGate, CoherenceGatingLayer, random_state_coherence

Draw = Callable[..., Tensor]
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def test_measures_are_their_definitions(draw: Draw) -> None:
    states = draw(9, 25, 4)
    squared = states.double().square().sum(-1)
    q = squared / squared.sum(-1, keepdim=True)
    entropy = -(q * q.log2()).sum(-1)
    torch.testing.assert_close(measures.masses(states).double(), q, **CLOSE)
    torch.testing.assert_close(measures.entropy(states).double(), entropy, **CLOSE)
    torch.testing.assert_close(measures.coherence(states).double(), 1 - entropy / math.log2(25), **CLOSE)


def test_one_prime_is_coherent_and_all_alike_are_not() -> None:
    one = torch.zeros(25, 4)
    one[3, 2] = 5.0
    torch.testing.assert_close(measures.coherence(one), torch.tensor(1.0), **CLOSE)
    torch.testing.assert_close(measures.coherence(torch.ones(25, 4)), torch.tensor(0.0), **CLOSE)
    two = torch.zeros(8, 2)
    two[:2, 0] = 1.0
    torch.testing.assert_close(measures.entropy(two), torch.tensor(1.0), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_zero_states_are_spread_evenly_with_finite_gradient(dtype: torch.dtype) -> None:
    states = torch.zeros(3, 25, 4, dtype=dtype, requires_grad=True)
    coherence = measures.coherence(states)
    torch.testing.assert_close(coherence, torch.zeros_like(coherence), **CLOSE)
    (coherence + measures.entropy(states) + measures.masses(states).sum(-1)).sum().backward()
    assert states.grad is not None
    assert states.grad.eq(0).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_measures_ignore_scale(draw: Draw, scale: float) -> None:
    states = draw(9, 25, 4)
    # The logarithms of large masses are subtracted from each other.
    torch.testing.assert_close(
        measures.entropy(states * scale), measures.entropy(states), atol=2e-5, rtol=1e-5
    )


def test_gradients_are_right(draw: Draw) -> None:
    states = draw(2, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(measures.entropy, (states,))
    assert torch.autograd.gradcheck(measures.coherence, (states,))


@pytest.mark.parametrize("num_primes", [2, 3, 25, 100])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_scale_of_random_states_is_known(draw: Draw, num_primes: int, parts: int) -> None:
    sample = measures.coherence(draw(20_000, num_primes, parts, dtype=torch.float64))
    mean, spread = random_state_coherence(num_primes, parts)
    # 20,000 draws: the mean is known to spread / 141, the spread to about 2 %.
    assert abs(sample.mean() - mean) < 5 * spread / math.sqrt(20_000)
    assert abs(sample.std() / spread - 1) < 0.06


def test_fault_the_gate_on_bare_coherence_is_shut_at_the_start(draw: Draw) -> None:
    """The published σ(10 (C − 0.668)) is below 0.02 for random states of 25 primes; ours is not."""
    coherence = measures.coherence(draw(2000, 25, 1))
    assert torch.sigmoid(10 * (coherence - 0.668)).mean() < 0.02
    gate = CoherenceGate(25, 1)(coherence)
    assert 0.3 < gate.mean() < 0.5


@pytest.mark.parametrize("num_primes", [2, 3, 8, 25, 100])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gate_is_half_open_at_the_start_and_differs_between_states(
    draw: Draw, generator: Generator, num_primes: int, parts: int, scale: float
) -> None:
    layer = CoherenceGatingLayer(32, num_primes=num_primes, amplitude_dim=parts, generator=generator)
    x = scale * draw(500, 32)
    gated, _ = layer(x)
    gate = (gated / x).mean(-1)
    assert 0.2 < gate.mean() < 0.8
    assert gate.std() > 0.1


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.95])
def test_threshold_is_the_share_of_random_states_held_back(draw: Draw, threshold: float) -> None:
    coherence = measures.coherence(draw(5000, 25, 4))
    passed = CoherenceGate(25, 4, threshold, soft_gate=False)(coherence).mean()
    # Coherence of random states is a little skew, and the threshold is that of a normal distribution.
    assert abs(passed - (1 - threshold)) < 0.04


def test_incoherent_states_are_attenuated_and_coherent_ones_pass() -> None:
    gate = CoherenceGate(25, 4)
    assert gate(torch.tensor(0.0)) < 0.05
    assert gate(torch.tensor(1.0)) > 0.99
    rising = gate(torch.linspace(0, 0.3, 50))
    assert (rising.diff() > 0).all()


def test_hard_gate_is_zero_or_one_with_the_soft_gradient(draw: Draw) -> None:
    coherence = measures.coherence(draw(100, 25, 4)).requires_grad_()
    hard, soft = CoherenceGate(soft_gate=False), CoherenceGate()
    gate = hard(coherence)
    assert set(gate.tolist()) == {0.0, 1.0}
    (hard_grad,) = torch.autograd.grad(gate.sum(), coherence)
    (soft_grad,) = torch.autograd.grad(soft(coherence).sum(), coherence)
    torch.testing.assert_close(hard_grad, soft_grad)
    assert hard_grad.min() > 0


@pytest.mark.parametrize("soft_gate", [True, False])
def test_gradient_reaches_every_parameter(draw: Draw, generator: Generator, soft_gate: bool) -> None:
    layer = CoherenceGatingLayer(12, soft_gate=soft_gate, generator=generator)
    gated, _ = layer(draw(20, 12))
    gated.square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_a_given_coherence_is_used(draw: Draw, generator: Generator) -> None:
    layer = CoherenceGatingLayer(12, own_projection=False)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 2
    x, coherence = draw(20, 12), torch.linspace(0, 1, 20)
    gated, returned = layer(x, coherence)
    assert returned is coherence
    torch.testing.assert_close(gated, x * layer.gate(coherence)[:, None])
    with pytest.raises(FusionShapeError, match="no coherence"):
        layer(x)


def test_bfloat16_keeps_its_dtype_and_nearly_its_gate(draw: Draw, generator: Generator) -> None:
    layer = CoherenceGatingLayer(12, generator=generator)
    x = draw(20, 12)
    expected, _ = layer(x)
    gated, coherence = layer.bfloat16()(x.bfloat16())
    assert gated.dtype == torch.bfloat16
    assert coherence.dtype == torch.float32
    assert (gated - expected).abs().max() < 0.3


def test_wrong_options_and_shapes_are_refused() -> None:
    with pytest.raises(GraftConfigError, match=r"threshold: got 1\.1"):
        CoherenceGate(threshold=1.1)
    with pytest.raises(GraftConfigError, match="1 primes"):
        CoherenceGate(1)
    with pytest.raises(FusionShapeError, match=r"\(3, 11\)"):
        CoherenceGatingLayer(12)(torch.zeros(3, 11))
    with pytest.raises(FusionShapeError, match="at least 2 primes"):
        measures.entropy(torch.zeros(1, 4))
