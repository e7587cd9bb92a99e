"""States over integers under composition are the algebra that unique factorisation promises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from braid_fusion.errors import FusionShapeError
from braid_fusion.resonance.composition import IntegerState
from braid_fusion.resonance.primes import first_primes
from braid_fusion.resonance.quaternion import hamilton_product

PRIMES = first_primes(6)
EXACT = {"atol": 1e-11, "rtol": 1e-11}
Draw = Callable[..., Tensor]


def _state(draw: Draw, seed: int, parts: int = 4, *batch: int) -> IntegerState:
    return IntegerState.of(PRIMES, draw(*batch, len(PRIMES), parts, seed=seed, dtype=torch.float64))


def _product(left: Tensor, right: Tensor, primes: tuple[int, ...]) -> IntegerState:
    return IntegerState.of(primes, left) * IntegerState.of(primes, right)


def _basis(integer: int) -> IntegerState:
    return IntegerState.of((integer,), torch.eye(1, 4, dtype=torch.float64))


def _same(left: IntegerState, right: IntegerState) -> None:
    assert torch.equal(left.integers, right.integers)
    torch.testing.assert_close(left.amplitudes, right.amplitudes, **EXACT)


def test_primes_compose_to_their_product() -> None:
    for p, q in itertools.product(PRIMES, PRIMES):
        product = _basis(p) * _basis(q)
        assert product.integers.tolist() == [p * q]
        assert product.amplitudes.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_different_multisets_of_primes_are_different_orthogonal_states() -> None:
    multisets = [m for size in range(4) for m in itertools.combinations_with_replacement(PRIMES, size)]
    products = [math.prod((_basis(p) for p in m), start=_basis(1)) for m in multisets]
    found = [int(state.integers) for state in products]
    assert found == [math.prod(m) for m in multisets]
    assert len(set(found)) == len(multisets)


def test_amplitude_of_a_product_is_the_sum_over_its_factorisations(draw: Draw) -> None:
    a, b = (draw(len(PRIMES), 4, seed=s, dtype=torch.float64) for s in (1, 2))
    product = _product(a, b, PRIMES)
    torch.testing.assert_close(
        product.amplitude(6), hamilton_product(a[0], b[1]) + hamilton_product(a[1], b[0]), **EXACT
    )
    torch.testing.assert_close(product.amplitude(4), hamilton_product(a[0], b[0]), **EXACT)
    assert product.amplitude(8).eq(0).all()
    assert len(product.integers) == len(PRIMES) * (len(PRIMES) + 1) // 2


def test_composition_associates_distributes_and_has_a_unit(draw: Draw) -> None:
    a, b, c = (_state(draw, seed) for seed in (1, 2, 3))
    _same((a * b) * c, a * (b * c))
    _same(a * (b + c), a * b + a * c)
    _same((a + b) * c, a * c + b * c)
    one = IntegerState.unit(4, torch.float64)
    _same(one * a, a)
    _same(a * one, a)


def test_order_matters_for_quaternions_and_not_for_complex_amplitudes(draw: Draw) -> None:
    complex_ = [_state(draw, seed, 2) for seed in (1, 2)]
    _same(complex_[0] * complex_[1], complex_[1] * complex_[0])
    a, b = _state(draw, 1), _state(draw, 2)
    assert not torch.allclose((a * b).amplitudes, (b * a).amplitudes)


def test_norms_multiply_where_factorisation_is_ordered(draw: Draw) -> None:
    """With factors from disjoint sets of primes, nothing interferes: the composed state is the tensor product."""
    a, b = (draw(3, 4, seed=s, dtype=torch.float64) for s in (1, 2))
    left, right = IntegerState.of(PRIMES[:3], a), IntegerState.of(PRIMES[3:], b)
    torch.testing.assert_close(
        (left * right).squared_norm(), left.squared_norm() * right.squared_norm(), **EXACT
    )


def test_batches_broadcast_and_gradients_flow(draw: Draw) -> None:
    a, b = draw(5, 1, 3, 4, dtype=torch.float64), draw(2, 3, 4, seed=2, dtype=torch.float64)
    product = _product(a, b, PRIMES[:3])
    assert product.amplitudes.shape == (5, 2, 6, 4)
    torch.testing.assert_close(
        product.amplitudes[3, 1], _product(a[3, 0], b[1], PRIMES[:3]).amplitudes, **EXACT
    )
    summed = product + IntegerState.unit(4, torch.float64)
    assert summed.amplitudes.shape == (5, 2, 7, 4)
    x, y = (t.clone().requires_grad_() for t in (a[:1], b))
    assert torch.autograd.gradcheck(lambda x, y: _product(x, y, PRIMES[:3]).amplitudes, (x, y))


def test_integers_in_any_order_are_sorted_and_merged() -> None:
    state = IntegerState.of((5, 2, 5), torch.tensor([[1.0], [2.0], [3.0]]))
    assert state.integers.tolist() == [2, 5]
    assert state.amplitudes.flatten().tolist() == [2.0, 4.0]


def test_what_makes_no_state_is_refused() -> None:
    ones = torch.ones(2, 4)
    with pytest.raises(FusionShapeError, match="3 integers"):
        IntegerState.of((2, 3, 5), ones)
    with pytest.raises(FusionShapeError, match="integer 0"):
        IntegerState.of((2, 0), ones)
    with pytest.raises(FusionShapeError, match="4 and 2"):
        IntegerState.of((2, 3), ones) * IntegerState.of((2, 3), ones[:, :2])
    large = IntegerState.of((2**40,), ones[:1])
    with pytest.raises(FusionShapeError, match=r"2\^63"):
        large * large
