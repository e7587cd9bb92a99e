"""Quaternion algebra and rotations, for any numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from braid_fusion.errors import FusionShapeError
from braid_fusion.resonance import quaternion as qn

# float64 products of numbers up to 10: sums of four, a few roundings.
EXACT = {"atol": 1e-9, "rtol": 1e-9}
Draw = Callable[..., Tensor]

_NUMBER = st.floats(-10.0, 10.0, allow_nan=False).map(lambda x: round(x, 6))
any_quaternion = st.lists(_NUMBER, min_size=4, max_size=4).map(lambda x: torch.tensor(x, dtype=torch.float64))
some_quaternion = any_quaternion.filter(lambda q: q.norm() > 1e-2)
unit_quaternion = some_quaternion.map(lambda q: q / q.norm())
any_vector = st.lists(_NUMBER, min_size=3, max_size=3).map(lambda x: torch.tensor(x, dtype=torch.float64))
quick = settings(max_examples=50, deadline=None)


@quick
@given(any_quaternion, any_quaternion, any_quaternion)
def test_product_associates(a: Tensor, b: Tensor, c: Tensor) -> None:
    left = qn.hamilton_product(qn.hamilton_product(a, b), c)
    torch.testing.assert_close(left, qn.hamilton_product(a, qn.hamilton_product(b, c)), **EXACT)


@quick
@given(any_quaternion, any_quaternion)
def test_conjugate_reverses_and_norms_multiply(a: Tensor, b: Tensor) -> None:
    ab = qn.hamilton_product(a, b)
    torch.testing.assert_close(
        qn.conjugate(ab), qn.hamilton_product(qn.conjugate(b), qn.conjugate(a)), **EXACT
    )
    torch.testing.assert_close(qn.norm(ab), qn.norm(a) * qn.norm(b), **EXACT)


@quick
@given(any_quaternion, any_quaternion)
def test_imaginary_parts_multiply_as_cross_and_dot_product(a: Tensor, b: Tensor) -> None:
    a, b = a.clone(), b.clone()
    a[0] = b[0] = 0.0
    ab = qn.hamilton_product(a, b)
    torch.testing.assert_close(ab[1:], torch.linalg.cross(a[1:], b[1:]), **EXACT)
    torch.testing.assert_close(ab[0], -(a[1:] @ b[1:]), **EXACT)


@quick
@given(some_quaternion)
def test_inverse_undoes_on_both_sides(q: Tensor) -> None:
    one = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(qn.hamilton_product(q, qn.inverse(q)), one, **EXACT)
    torch.testing.assert_close(qn.hamilton_product(qn.inverse(q), q), one, **EXACT)


@quick
@given(any_vector, unit_quaternion, unit_quaternion)
def test_rotations_keep_length_compose_and_are_matrices(v: Tensor, p: Tensor, q: Tensor) -> None:
    turned = qn.rotate(v, q)
    torch.testing.assert_close(turned.norm(), v.norm(), **EXACT)
    torch.testing.assert_close(qn.rotate(turned, p), qn.rotate(v, qn.hamilton_product(p, q)), **EXACT)
    torch.testing.assert_close(turned, qn.rotate(v, -q), **EXACT)
    torch.testing.assert_close(qn.rotation_matrix(q) @ v, turned, **EXACT)
    pure = torch.cat([torch.zeros(1, dtype=torch.float64), v])
    sandwich = qn.hamilton_product(qn.hamilton_product(q, pure), qn.conjugate(q))
    torch.testing.assert_close(sandwich[1:], turned, **EXACT)


def test_a_quarter_turn_about_k_carries_i_to_j() -> None:
    i, j, k = torch.eye(3, dtype=torch.float64)
    turn = qn.from_axis_angle(3 * k, torch.tensor(math.pi / 2, dtype=torch.float64))
    torch.testing.assert_close(qn.rotate(i, turn), j)


@quick
@given(any_vector.filter(lambda v: v.norm() > 1e-2), st.floats(1e-3, math.pi - 1e-3))
def test_axis_and_angle_come_back(axis: Tensor, angle: float) -> None:
    turn = qn.from_axis_angle(axis, torch.tensor(angle, dtype=torch.float64))
    torch.testing.assert_close(qn.norm(turn), torch.tensor(1.0, dtype=torch.float64))
    for same in (turn, -turn):
        got_axis, got_angle = qn.to_axis_angle(same)
        torch.testing.assert_close(got_axis, axis / axis.norm(), **EXACT)
        torch.testing.assert_close(got_angle.item(), angle, **EXACT)


@quick
@given(unit_quaternion, unit_quaternion, st.floats(0.0, 1.0))
def test_slerp_moves_evenly_on_the_short_arc(a: Tensor, b: Tensor, t: float) -> None:
    near = -b if (a @ b) < 0 else b
    torch.testing.assert_close(qn.slerp(a, b, 0.0), a, **EXACT)
    torch.testing.assert_close(qn.slerp(a, b, 1.0), near, **EXACT)
    between = qn.slerp(a, b, t)
    torch.testing.assert_close(qn.norm(between).item(), 1.0, **EXACT)
    arc = 2 * torch.atan2((a - near).norm(), (a + near).norm())
    assert arc <= math.pi / 2 + 1e-9
    travelled = 2 * torch.atan2((a - between).norm(), (a + between).norm())
    torch.testing.assert_close(travelled, t * arc, **EXACT)
    middle = qn.slerp(a, b, 0.5)
    torch.testing.assert_close(middle, (a + near) / (a + near).norm(), **EXACT)


@pytest.mark.parametrize("nudge", [0.0, 1e-12, 1e-6])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slerp_is_stable_between_near_equal_and_opposite(nudge: float, sign: float) -> None:
    a = torch.tensor([0.6, 0.0, 0.8, 0.0], dtype=torch.float64)
    b = (sign * (a + torch.tensor([0.8, 0.0, -0.6, 0.0]) * nudge)).requires_grad_()
    middle = qn.slerp(a, b, 0.5)
    torch.testing.assert_close(qn.norm(middle).item(), 1.0, **EXACT)
    middle.square().sum().backward()
    assert b.grad is not None
    assert b.grad.isfinite().all()


def test_gradients_are_right(draw: Draw) -> None:
    a, b = (draw(3, 4, seed=s, dtype=torch.float64).requires_grad_() for s in (1, 2))
    v = draw(3, 3, seed=3, dtype=torch.float64).requires_grad_()
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(qn.hamilton_product, (a, b))
    assert check(qn.inverse, (a,))
    assert check(qn.normalise, (a,))
    assert check(lambda v, q: qn.rotate(v, qn.normalise(q)), (v, a))
    assert check(lambda p, q, t: qn.slerp(qn.normalise(p), qn.normalise(q), t), (a, b, t))
    assert check(lambda q: qn.to_axis_angle(qn.normalise(q)), (a,))


def test_everything_broadcasts(draw: Draw) -> None:
    a, b, v = draw(5, 1, 4), draw(3, 4), draw(3, 3)
    assert qn.hamilton_product(a, b).shape == (5, 3, 4)
    assert qn.slerp(qn.normalise(a), qn.normalise(b), 0.3).shape == (5, 3, 4)
    assert qn.rotate(v, qn.normalise(a)).shape == (5, 3, 3)
    assert qn.from_axis_angle(v, torch.ones(5, 1)).shape == (5, 3, 4)


def test_what_is_no_quaternion_is_refused() -> None:
    with pytest.raises(FusionShapeError, match=r"norm: got .*\(2, 3\)"):
        qn.norm(torch.zeros(2, 3))
    with pytest.raises(FusionShapeError, match="vectors"):
        qn.rotate(torch.zeros(4), torch.ones(4))
