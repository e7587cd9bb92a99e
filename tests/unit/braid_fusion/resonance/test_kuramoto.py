"""Oscillators attract each other, lock where mean-field theory says so, and stay within their position."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.resonance.kuramoto import KuramotoModule, order_parameter, simulate

Draw = Callable[..., Tensor]
GAMMA = 0.5


def _scattered(num: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * math.pi * torch.rand(num, generator=generator, dtype=torch.float64)


def _lorentzian(num: int, gamma: float) -> Tensor:
    """Quantiles, so that the finite sample is as Lorentzian as can be."""
    shares = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    return gamma * torch.tan(math.pi * (shares - 0.5))


def _naive(phases: Tensor, frequencies: Tensor, coupling: float, dt: float, num_steps: int) -> Tensor:
    """The sum over all pairs, by Euler's method."""
    for _ in range(num_steps):
        pulls = torch.sin(phases[None, :] - phases[:, None]).mean(-1)
        phases = phases + dt * (frequencies + coupling * pulls)
    return phases


def _same_angles(left: Tensor, right: Tensor, tolerance: float) -> None:
    assert torch.remainder(left - right + math.pi, 2 * math.pi).sub(math.pi).abs().max() < tolerance


@pytest.mark.parametrize("order", [1, 2, 4])
def test_flow_is_that_of_the_sum_over_pairs(order: int) -> None:
    phases, frequencies = _scattered(20), _lorentzian(20, 0.2)
    expected = _naive(phases, frequencies, 1.5, 1e-4, 10_000)
    # Euler's own error at this step is about 1e-4; the first order's at 1e-3 is about 1e-3.
    _same_angles(simulate(phases, frequencies, 1.5, 1e-3, 1000, order), expected, 3e-3)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_error_falls_with_the_order_claimed(order: int) -> None:
    phases, frequencies = _scattered(20), _lorentzian(20, 0.2).clamp(-3, 3)
    exact = simulate(phases, frequencies, 2.0, 1e-3, 1000, 4)
    errors = [
        torch.polar(torch.ones(20).double(), simulate(phases, frequencies, 2.0, 1 / n, n, order) - exact)
        .sub(1)
        .abs()
        .max()
        for n in (20, 40)
    ]
    measured = math.log2(errors[0] / errors[1])
    assert abs(measured - order) < 0.35


@pytest.mark.parametrize("dt", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("order", [1, 2])
def test_rotation_without_coupling_is_exact_at_any_step(dt: float, order: int) -> None:
    phases, frequencies = _scattered(50), _lorentzian(50, 1.0)
    _same_angles(simulate(phases, frequencies, 0.0, dt, 5, order), phases + 5 * dt * frequencies, 1e-9)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_fault_inverted_sign_identical_oscillators_synchronise(order: int) -> None:
    """With the published sign they are pushed apart: order 0.65 → 0.00."""
    phases = _scattered(100, seed=1)
    start = order_parameter(phases)
    assert start < 0.3
    previous = start
    for steps in (20, 40, 80, 160):
        now = order_parameter(simulate(phases, torch.zeros(100), 1.0, 0.1, steps, order))
        assert now > previous
        previous = now
    assert previous > 0.99
    assert order_parameter(simulate(phases, torch.zeros(100), -1.0, 0.1, 160, order)) < 0.05


def test_order_of_identical_oscillators_grows_as_theory_says() -> None:
    """ṙ = K r (1 − r²) / 2 for phases on the Poisson kernel (Ott and Antonsen 2008): r² / (1 − r²) ~ e^(Kt)."""
    num, start = 4000, 0.2
    shares = 2 * math.pi * ((torch.arange(num, dtype=torch.float64) + 0.5) / num - 0.5)
    phases = 2 * torch.atan(((1 - start) / (1 + start)) * torch.tan(shares / 2))
    torch.testing.assert_close(order_parameter(phases).item(), start, atol=1e-3, rtol=0)
    for coupling, time in [(1.0, 2.0), (2.0, 1.5), (4.0, 1.0)]:
        odds = start**2 / (1 - start**2) * math.exp(coupling * time)
        got = order_parameter(simulate(phases, torch.zeros(num), coupling, time / 100, 100, 2))
        torch.testing.assert_close(got.item(), math.sqrt(odds / (1 + odds)), atol=1e-3, rtol=0)


def _long_run_order(coupling: float, num: int, order: int = 1) -> float:
    phases, frequencies = _scattered(num), _lorentzian(num, GAMMA)
    settled = simulate(phases, frequencies, coupling, 0.05, 1200, order)
    mean = 0.0
    for _ in range(50):
        settled = simulate(settled, frequencies, coupling, 0.05, 10, order)
        mean += float(order_parameter(settled)) / 50
    return mean


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_below_the_critical_coupling_order_stays_noise(share: float) -> None:
    """Kuramoto: for a Lorentzian of half-width γ the critical coupling is K_c = 2 γ."""
    num = 2000
    # Noise is of the size 1/√N, a little larger near the transition.
    assert _long_run_order(share * 2 * GAMMA, num) < 4 / math.sqrt(num)


@pytest.mark.parametrize("share", [1.5, 2.0, 4.0])
def test_above_the_critical_coupling_order_is_that_of_theory(share: float) -> None:
    """r = √(1 − K_c / K) exactly, for a Lorentzian (Kuramoto 1975)."""
    # Finite size and the step of the first order: within 0.02.
    assert abs(_long_run_order(share * 2 * GAMMA, 2000) - math.sqrt(1 - 1 / share)) < 0.02


def _module(coupling: float, generator: Generator, **options: object) -> KuramotoModule:
    return KuramotoModule(16, coupling, generator=generator, **options)  # type: ignore[arg-type]


def test_fault_few_small_steps_the_module_really_synchronises(draw: Draw, generator: Generator) -> None:
    x = draw(200, 16)
    free, weak, strong = (_module(k, generator)(x)[1] for k in (0.0, 1.5, 8.0))
    assert free.mean() < 0.3
    assert 0.4 < weak.mean() < 0.9
    assert weak.std() > 0.05
    assert strong.min() > 0.9


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3])
def test_positions_start_incoherent_whatever_their_scale(
    draw: Draw, generator: Generator, scale: float
) -> None:
    _, order, _ = _module(0.0, generator, frequency_spread=0.0)(scale * draw(200, 16))
    assert order.mean() < 0.3


def test_fault_oscillators_are_not_positions(draw: Draw, generator: Generator) -> None:
    """Published oscillators were positions, all to all: each saw the future. Here no position sees another."""
    module = _module(3.0, generator)
    x = draw(2, 6, 16)
    changed = x.clone()
    changed[0, 3] = draw(16, seed=9)
    before, after = module(x), module(changed)
    untouched = torch.ones(2, 6, dtype=torch.bool)
    untouched[0, 3] = False
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[untouched], new[untouched])
        assert not torch.equal(old[0, 3], new[0, 3])


def test_outputs_are_what_they_say(draw: Draw, generator: Generator) -> None:
    phases, order, features = _module(1.5, generator)(draw(2, 3, 16))
    assert phases.shape == (2, 3, 32)
    assert order.shape == (2, 3)
    assert features.shape == (2, 3, 32, 2)
    torch.testing.assert_close(order_parameter(phases), order)
    torch.testing.assert_close(torch.stack([phases.cos(), phases.sin()], -1), features, atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_fault_item_gradient_reaches_phases_frequencies_and_coupling(order: int) -> None:
    phases = _scattered(6).requires_grad_()
    frequencies = _lorentzian(6, 0.3).requires_grad_()
    coupling = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def run(phases: Tensor, frequencies: Tensor, coupling: Tensor) -> Tensor:
        return order_parameter(simulate(phases, frequencies, coupling, 0.3, 3, order))

    assert torch.autograd.gradcheck(run, (phases, frequencies, coupling))
    for gradient in torch.autograd.grad(run(phases, frequencies, coupling), (phases, frequencies, coupling)):
        assert gradient.abs().min() > 0


def test_fault_item_the_module_trains_by_its_order(draw: Draw, generator: Generator) -> None:
    module, x = _module(0.5, generator), draw(20, 16)
    before = module(x)[1].mean()
    (1 - before).backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    assert module.coupling.grad is not None
    assert module.coupling.grad < 0
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 1.0 * parameter.grad
    assert module(x)[1].mean() > before


def test_a_field_of_zero_has_finite_gradient() -> None:
    phases = torch.tensor([0.0, math.pi / 2, math.pi, -math.pi / 2]).requires_grad_()
    order_parameter(simulate(phases, torch.zeros(4), 2.0, 0.5, 2, 1)).backward()
    assert phases.grad is not None
    assert phases.grad.isfinite().all()


def test_bfloat16_and_fixed_frequencies(draw: Draw, generator: Generator) -> None:
    module = _module(1.5, generator, use_learned_frequencies=False)
    assert "frequencies" not in dict(module.named_parameters())
    assert "frequencies" in module.state_dict()
    phases, order, _ = module.bfloat16()(draw(3, 16).bfloat16())
    assert phases.dtype == order.dtype == torch.float32
    assert order.isfinite().all()


def test_wrong_options_and_widths_are_refused(generator: Generator) -> None:
    with pytest.raises(GraftConfigError, match="order: got 3"):
        simulate(torch.zeros(3), torch.zeros(3), 1.0, 0.1, 1, order=3)
    with pytest.raises(GraftConfigError, match=r"5 steps of -0\.1"):
        KuramotoModule(16, dt=-0.1)
    with pytest.raises(GraftConfigError, match="got 1"):
        KuramotoModule(16, num_oscillators=1)
    with pytest.raises(FusionShapeError, match=r"\(2, 5\).*16"):
        _module(1.5, generator)(torch.zeros(2, 5))
