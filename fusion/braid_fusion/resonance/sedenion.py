"""The algebras that the Cayley–Dickson doubling makes: complex numbers, quaternions, octonions, sedenions.

Owns their product and conjugate for tensors whose last dimension holds the 2, 4, 8 or 16 components, the real one
first. Knows nothing of positions or models. ``quaternion.py`` is the four-dimensional case with its rotations.

Doubling: (a, b)(c, d) = (a c − d* b, d a + b c*), (a, b)* = (a*, −b). Basis elements multiply to basis elements up to
sign, e_i e_j = ± e_(i xor j), so one table of signs says everything, and left multiplication by a is a matrix whose
entries are components of a: entry [k, j] is sign(k xor j, j) · a_(k xor j).

Letters: A components of a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from braid_fusion.errors import FusionShapeError

DIMENSIONS = (1, 2, 4, 8, 16)

# A product of more components than these goes by all pairs of them, else by a matrix: what is faster.
_BY_MATRIX = 4


def product(left_A: Tensor, right_A: Tensor) -> Tensor:
    """The product of numbers (..., A) and (..., A), which broadcast. Commutes for A = 2 only, is associative up to 4,
    multiplies norms up to 8; sedenions (16) have zero divisors.

    Raises: FusionShapeError if the numbers of components differ or are none of `DIMENSIONS`.
    """
    size = left_A.shape[-1]
    if right_A.shape[-1] != size:
        raise FusionShapeError(
            f"product: got numbers of {size} and of {right_A.shape[-1]} components, expected the same for both"
        )
    if size > _BY_MATRIX:
        pairs = (left_A.unsqueeze(-1) * right_A.unsqueeze(-2)).flatten(-2)
        return pairs @ _tables(_dimension(left_A), left_A.device, left_A.dtype).product
    return (left_matrix(left_A) @ right_A.unsqueeze(-1)).squeeze(-1)


def left_matrix(number_A: Tensor) -> Tensor:
    """(..., A, A): the matrix M with M b = number · b."""
    tables = _tables(_dimension(number_A), number_A.device, number_A.dtype)
    return (number_A @ tables.from_left).view(*number_A.shape, number_A.shape[-1])


def right_matrix(number_A: Tensor) -> Tensor:
    """(..., A, A): the matrix M with M b = b · number."""
    tables = _tables(_dimension(number_A), number_A.device, number_A.dtype)
    return (number_A @ tables.from_right).view(*number_A.shape, number_A.shape[-1])


def conjugate(number_A: Tensor) -> Tensor:
    """The same real part, the others with opposite sign."""
    return number_A * _tables(_dimension(number_A), number_A.device, number_A.dtype).conjugation


def _dimension(number_A: Tensor) -> int:
    size = number_A.shape[-1] if number_A.dim() else 0
    if size not in DIMENSIONS:
        raise FusionShapeError(
            f"got a tensor of shape {tuple(number_A.shape)}, expected numbers of 1, 2, 4, 8 or 16 components in its"
            " last dimension"
        )
    return size


@lru_cache
def sign_table(dimension: int) -> tuple[tuple[int, ...], ...]:
    """``table[i][j]`` is the sign of e_i e_j = ± e_(i xor j)."""
    if dimension == 1:
        return ((1,),)
    half = dimension // 2
    smaller = sign_table(half)

    def sign(i: int, j: int) -> int:
        # e_i = (e_i, 0) below half, (0, e_(i - half)) from there on; e_j alike.
        upper_i, upper_j = i >= half, j >= half
        i, j = i % half, j % half
        conjugated = -1 if j else 1  # of e_j* = ± e_j
        if not upper_i and not upper_j:
            return smaller[i][j]  # a c
        if not upper_i:
            return smaller[j][i]  # d a
        if not upper_j:
            return smaller[i][j] * conjugated  # b c*
        return -smaller[j][i] * conjugated  # − d* b

    return tuple(tuple(sign(i, j) for j in range(dimension)) for i in range(dimension))


@dataclass(frozen=True, slots=True)
class _Tables:
    """The signs as maps that a matrix product applies: gathering by index takes several times as long.

    Each column has one entry that is not zero, ±1, or A of them (``product``), so nothing is rounded but sums.
    """

    product: Tensor  # (A A, A): the products of all pairs of components to the components of the product
    from_left: Tensor  # (A, A A): a number to its matrix of left multiplication
    from_right: Tensor  # (A, A A)
    conjugation: Tensor  # (A,)


@lru_cache(maxsize=64)
def _tables(dimension: int, device: torch.device, dtype: torch.dtype) -> _Tables:
    signs, numbers = sign_table(dimension), range(dimension)
    constants = torch.zeros(dimension, dimension, dimension, dtype=torch.float64)
    for i in numbers:
        for j in numbers:
            constants[i, j, i ^ j] = signs[i][j]  # e_i e_j
    conjugation = torch.tensor([1.0] + [-1.0] * (dimension - 1))
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        return _Tables(
            constants.flatten(0, 1).to(device, dtype),
            constants.transpose(1, 2).flatten(1).to(device, dtype),
            constants.permute(1, 2, 0).flatten(1).to(device, dtype),
            conjugation.to(device, dtype),
        )
