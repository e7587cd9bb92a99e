"""The projection to prime states, its phases, and how states interfere."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.resonance.primes import PrimeProjection, first_primes, inner_product, interference
from braid_fusion.resonance.quaternion import conjugate, hamilton_product, normalise

Draw = Callable[..., Tensor]
# float32 sums over 25 primes.
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def test_first_primes() -> None:
    assert first_primes(10) == (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)
    for count in (1, 5, 6, 7, 25, 300, 1000):
        primes = first_primes(count)
        assert len(primes) == count
        assert all(p % q for p in primes for q in range(2, math.isqrt(p) + 1))
    assert first_primes(1000)[-1] == 7919
    with pytest.raises(GraftConfigError, match="got 0"):
        first_primes(0)


@pytest.mark.parametrize(("use_quaternion", "parts"), [(True, 4), (False, 2)])
def test_shapes(draw: Draw, generator: Generator, use_quaternion: bool, parts: int) -> None:
    projection = PrimeProjection(12, 25, use_quaternion, generator=generator)
    states = projection(draw(2, 5, 12))
    assert states.shape == (2, 5, 25, parts)
    assert projection.coherence(states).shape == projection.entropy(states).shape == (2, 5)
    assert projection(draw(12)).shape == (25, parts)


def test_superpositions_go_to_superpositions(draw: Draw, generator: Generator) -> None:
    projection = PrimeProjection(12, generator=generator)
    x, y = draw(3, 12, seed=1), draw(3, 12, seed=2)
    torch.testing.assert_close(projection(2 * x + y), 2 * projection(x) + projection(y), **CLOSE)


@pytest.mark.parametrize("use_quaternion", [True, False])
def test_phases_turn_amplitudes_and_keep_masses(
    draw: Draw, generator: Generator, use_quaternion: bool
) -> None:
    projection = PrimeProjection(12, 7, use_quaternion, generator=generator)
    x = draw(4, 12)
    before = projection(x)
    with torch.no_grad():
        projection.phases[3] += 0.8
    after = projection(x)
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(after[:, others], before[:, others])
    assert (after[:, 3] - before[:, 3]).abs().min(-1).values.max() > 1e-2
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), **CLOSE)
    torch.testing.assert_close(projection.entropy(after), projection.entropy(before), **CLOSE)
    # cos of the angle between the amplitude before and after is that of the phase.
    cosine = (after[:, 3] * before[:, 3]).sum(-1) / before[:, 3].square().sum(-1)
    torch.testing.assert_close(cosine, torch.full_like(cosine, math.cos(0.8)), **CLOSE)


def test_complex_phase_is_multiplication_by_a_unit_number(draw: Draw, generator: Generator) -> None:
    projection = PrimeProjection(12, 7, False, generator=generator)
    x = draw(4, 12)
    untouched = torch.view_as_complex((x @ projection.weight.T).view(4, 7, 2).contiguous())
    expected = untouched * torch.exp(1j * torch.tensor(first_primes(7)).log())
    torch.testing.assert_close(torch.view_as_complex(projection(x)), expected, **CLOSE)


def test_gradient_reaches_weights_and_phases(draw: Draw, generator: Generator) -> None:
    projection = PrimeProjection(12, 7, generator=generator)
    target = draw(4, 7, 4, seed=9)
    (projection(draw(4, 12)) * target).sum().backward()
    for parameter in projection.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().min() > 0
    fixed = PrimeProjection(12, 7, learnable_phases=False, generator=generator)
    assert [name for name, _ in fixed.named_parameters()] == ["weight"]


def test_measures_do_not_depend_on_phases(draw: Draw, generator: Generator) -> None:
    projection = PrimeProjection(12, 7, generator=generator)
    projection.coherence(projection(draw(4, 12))).sum().backward()
    assert projection.phases.grad is not None
    assert projection.phases.grad.abs().max() < 1e-5


def test_draws_come_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    one = PrimeProjection(12, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    other = PrimeProjection(12, generator=torch.Generator().manual_seed(3))
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(draw: Draw, generator: Generator, dtype: torch.dtype) -> None:
    projection = PrimeProjection(12, generator=generator).to(dtype)
    states = projection(draw(3, 12).to(dtype))
    assert states.dtype == dtype
    assert projection.coherence(states).isfinite().all()


def test_wrong_widths_and_numbers_are_refused(generator: Generator) -> None:
    with pytest.raises(FusionShapeError, match=r"\(2, 11\).*12"):
        PrimeProjection(12, generator=generator)(torch.zeros(2, 11))
    with pytest.raises(GraftConfigError, match="num_primes: got 1"):
        PrimeProjection(12, 1)


def _basis(prime: int, number: list[float], primes: int = 4) -> Tensor:
    state = torch.zeros(primes, len(number))
    state[prime] = torch.tensor(number)
    return state


@pytest.mark.parametrize("parts", [2, 4])
def test_interference_of_equal_and_orthogonal_states(draw: Draw, parts: int) -> None:
    states = draw(5, 6, parts)
    torch.testing.assert_close(interference(states, 3 * states), torch.ones(5), **CLOSE)
    one = [1.0] + [0.0] * (parts - 1)
    assert interference(_basis(0, one), _basis(1, one)) == 0
    assert interference(torch.zeros(6, parts), states[0]) == 0
    mixed = interference(states[:, None], states)
    assert mixed.shape == (5, 5)
    assert ((mixed >= 0) & (mixed <= 1 + 1e-5)).all()


def test_interference_hears_relative_phase_and_not_a_common_one(draw: Draw) -> None:
    one, minus, i = [1.0, 0, 0, 0], [-1.0, 0, 0, 0], [0.0, 1, 0, 0]
    sum_, difference = _basis(0, one) + _basis(1, one), _basis(0, one) + _basis(1, minus)
    assert interference(sum_, difference) == 0
    torch.testing.assert_close(interference(sum_, _basis(0, one) + _basis(1, i)), torch.tensor(0.5))
    states = draw(6, 4)
    common = hamilton_product(states, normalise(draw(4, seed=8)))
    torch.testing.assert_close(interference(states, common), torch.tensor(1.0), **CLOSE)


def test_opposite_phases_cancel_when_superposed(draw: Draw, generator: Generator) -> None:
    projection = PrimeProjection(12, 7, False, generator=generator)
    x = draw(12)
    with torch.no_grad():
        before = projection(x)
        projection.phases += math.pi
        after = projection(x)
    assert (before + after).abs().max() < 1e-5


def test_projected_states_compose_by_the_products_of_their_primes(draw: Draw, generator: Generator) -> None:
    projection = PrimeProjection(12, 5, generator=generator)
    a, b = projection(draw(2, 12, seed=1)), projection(draw(2, 12, seed=2))
    composed = projection.compose(a, b)
    assert composed.integers.tolist() == sorted({p * q for p in first_primes(5) for q in first_primes(5)})
    expected = hamilton_product(a[:, 0], b[:, 3]) + hamilton_product(a[:, 3], b[:, 0])
    torch.testing.assert_close(composed.amplitude(14), expected, **CLOSE)


def test_inner_product_is_conjugate_symmetric(draw: Draw) -> None:
    a, b = draw(6, 4, seed=1), draw(6, 4, seed=2)
    torch.testing.assert_close(inner_product(a, b), conjugate(inner_product(b, a)), **CLOSE)
    torch.testing.assert_close(inner_product(a, a)[1:], torch.zeros(3), **CLOSE)
