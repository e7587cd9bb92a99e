"""The doubled algebras have the properties that theory says, and lose those that it says they lose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from braid_fusion.errors import FusionShapeError
from braid_fusion.resonance.sedenion import conjugate, left_matrix, product, right_matrix, sign_table

DIMENSIONS = [1, 2, 4, 8, 16]
# float64, sums of at most 16 products of numbers around 1.
EXACT = {"atol": 1e-11, "rtol": 1e-11}
Draw = Callable[..., Tensor]


def _three(draw: Draw, dimension: int) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = (draw(20, dimension, seed=seed, dtype=torch.float64) for seed in (1, 2, 3))
    return a, b, c


def _basis(dimension: int) -> Tensor:
    return torch.eye(dimension, dtype=torch.float64)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_product_is_bilinear_with_unit(draw: Draw, dimension: int) -> None:
    a, b, c = _three(draw, dimension)
    torch.testing.assert_close(product(a + 2 * b, c), product(a, c) + 2 * product(b, c), **EXACT)
    torch.testing.assert_close(product(c, a + 2 * b), product(c, a) + 2 * product(c, b), **EXACT)
    one = _basis(dimension)[0]
    torch.testing.assert_close(product(one, a), a)
    torch.testing.assert_close(product(a, one), a)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_matrices_say_what_the_product_says(draw: Draw, dimension: int) -> None:
    a, b, _ = _three(draw, dimension)
    torch.testing.assert_close((left_matrix(a) @ b[..., None])[..., 0], product(a, b), **EXACT)
    torch.testing.assert_close((right_matrix(b) @ a[..., None])[..., 0], product(a, b), **EXACT)


def _doubled(a: Tensor, b: Tensor) -> Tensor:
    """The definition, by recursion."""
    if a.shape[-1] == 1:
        return a * b
    (a, b), (c, d) = a.chunk(2, dim=-1), b.chunk(2, dim=-1)
    first = _doubled(a, c) - _doubled(_star(d), b)
    return torch.cat([first, _doubled(d, a) + _doubled(b, _star(c))], dim=-1)


def _star(a: Tensor) -> Tensor:
    return torch.cat([a[..., :1], -a[..., 1:]], dim=-1)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_product_is_the_doubling_formula(draw: Draw, dimension: int) -> None:
    a, b, _ = _three(draw, dimension)
    torch.testing.assert_close(product(a, b), _doubled(a, b), **EXACT)


def test_quaternion_units_multiply_as_hamilton_wrote() -> None:
    one, i, j, k = _basis(4)
    for left, right, expected in [(i, j, k), (j, k, i), (k, i, j), (j, i, -k), (i, i, -one), (j, j, -one)]:
        assert torch.equal(product(left, right), expected)
    assert torch.equal(product(product(i, j), k), -one)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_conjugation_reverses_products_and_gives_the_norm(draw: Draw, dimension: int) -> None:
    a, b, _ = _three(draw, dimension)
    torch.testing.assert_close(conjugate(product(a, b)), product(conjugate(b), conjugate(a)), **EXACT)
    squared = torch.zeros_like(a)
    squared[..., 0] = a.square().sum(-1)
    torch.testing.assert_close(product(conjugate(a), a), squared, **EXACT)


@pytest.mark.parametrize(("dimension", "holds"), [(1, True), (2, True), (4, True), (8, True), (16, False)])
def test_norms_multiply_up_to_the_octonions(draw: Draw, dimension: int, holds: bool) -> None:
    a, b, _ = _three(draw, dimension)
    expected = a.norm(dim=-1) * b.norm(dim=-1)
    assert torch.allclose(product(a, b).norm(dim=-1), expected, **EXACT) is holds


@pytest.mark.parametrize(("dimension", "holds"), [(1, True), (2, True), (4, False), (8, False), (16, False)])
def test_complex_numbers_are_the_last_that_commute(draw: Draw, dimension: int, holds: bool) -> None:
    a, b, _ = _three(draw, dimension)
    assert torch.allclose(product(a, b), product(b, a), **EXACT) is holds


@pytest.mark.parametrize(("dimension", "holds"), [(2, True), (4, True), (8, False), (16, False)])
def test_quaternions_are_the_last_that_associate(draw: Draw, dimension: int, holds: bool) -> None:
    a, b, c = _three(draw, dimension)
    assert torch.allclose(product(product(a, b), c), product(a, product(b, c)), **EXACT) is holds


@pytest.mark.parametrize(("dimension", "holds"), [(4, True), (8, True), (16, False)])
def test_octonions_are_the_last_alternative_ones(draw: Draw, dimension: int, holds: bool) -> None:
    a, b, _ = _three(draw, dimension)
    assert torch.allclose(product(a, product(a, b)), product(product(a, a), b), **EXACT) is holds


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_powers_associate_and_numbers_are_flexible(draw: Draw, dimension: int) -> None:
    a, b, _ = _three(draw, dimension)
    square = product(a, a)
    torch.testing.assert_close(product(square, a), product(a, square), **EXACT)
    torch.testing.assert_close(product(square, square), product(a, product(a, square)), **EXACT)
    torch.testing.assert_close(product(product(a, b), a), product(a, product(b, a)), **EXACT)


def test_sedenions_have_zero_divisors_and_octonions_none() -> None:
    e = _basis(16)
    left, right = e[3] + e[10], e[6] - e[15]
    assert torch.equal(product(left, right), torch.zeros(16, dtype=torch.float64))
    # Among octonions no sum or difference of two basis elements annihilates another.
    table = _basis(8)
    pairs = torch.stack([table[i] + s * table[j] for i in range(8) for j in range(i) for s in (1, -1)])
    assert product(pairs[:, None], pairs).norm(dim=-1).min() > 1.0


def test_smaller_algebras_lie_inside_larger_ones(draw: Draw) -> None:
    a, b, _ = _three(draw, 4)
    pad = torch.nn.functional.pad
    torch.testing.assert_close(
        product(pad(a, (0, 12)), pad(b, (0, 12))), pad(product(a, b), (0, 12)), **EXACT
    )


def test_sign_table_is_a_group_up_to_sign() -> None:
    table = torch.tensor(sign_table(16))
    assert table.abs().eq(1).all()
    imaginary = table[1:, 1:]
    off_diagonal = ~torch.eye(15, dtype=torch.bool)
    assert torch.equal(imaginary[off_diagonal], -imaginary.T[off_diagonal])
    assert imaginary.diagonal().eq(-1).all()


def test_gradients_are_right(draw: Draw) -> None:
    a, b = (draw(2, 16, seed=s, dtype=torch.float64).requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(product, (a, b))


def test_tables_made_without_gradients_serve_with_them() -> None:
    a = torch.ones(2, 8, dtype=torch.float16)
    with torch.inference_mode():
        product(a, a)
    b = a.clone().requires_grad_()
    product(b, b).sum().backward()
    assert b.grad is not None


@pytest.mark.parametrize("shapes", [((3, 3), (3, 3)), ((2, 4), (2, 8)), ((), ())])
def test_wrong_numbers_of_components_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises((FusionShapeError, IndexError)):
        product(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
