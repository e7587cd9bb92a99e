"""Quaternions as tensors (..., 4), real part first: products, rotations of space, slerp. Knows nothing of models.

Unit quaternions double-cover the rotations: q and −q turn space alike, q = cos(φ/2) + sin(φ/2) u turns by φ about u.

Letters: Q the four quaternion parts (1, i, j, k); X the three axes of space.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from braid_fusion.errors import FusionShapeError
from braid_fusion.resonance import sedenion


def hamilton_product(left_Q: Tensor, right_Q: Tensor) -> Tensor:
    """left ⊗ right, (..., 4); the shapes broadcast. i j = k. Raises: FusionShapeError unless both are (..., 4)."""
    _check(left_Q, "hamilton_product")
    _check(right_Q, "hamilton_product")
    return sedenion.product(left_Q, right_Q)


def conjugate(q_Q: Tensor) -> Tensor:
    """q*, (..., 4): the imaginary parts with opposite sign."""
    _check(q_Q, "conjugate")
    return sedenion.conjugate(q_Q)


def norm(q_Q: Tensor) -> Tensor:
    """|q|, (...,); its gradient at 0 is 0."""
    _check(q_Q, "norm")
    return cast(Tensor, torch.linalg.vector_norm(q_Q, dim=-1))


def normalise(q_Q: Tensor) -> Tensor:
    """q / |q|, (..., 4); 0 stays 0."""
    _check(q_Q, "normalise")
    return torch.nn.functional.normalize(q_Q, dim=-1, eps=torch.finfo(q_Q.dtype).tiny)


def inverse(q_Q: Tensor) -> Tensor:
    """q* / |q|², (..., 4). Zero has none: its inverse comes out as NaN."""
    _check(q_Q, "inverse")
    return sedenion.conjugate(q_Q) / q_Q.square().sum(-1, keepdim=True)


def rotate(vector_X: Tensor, q_Q: Tensor) -> Tensor:
    """The vectors (..., 3) turned by the unit quaternions (..., 4): the imaginary part of q ⊗ v ⊗ q*.

    Not checked to be of unit norm: another norm scales the vectors by its square. The shapes broadcast.
    """
    if vector_X.shape[-1:] != (3,):
        raise FusionShapeError(f"rotate: got vectors of shape {tuple(vector_X.shape)}, expected (..., 3)")
    return (rotation_matrix(q_Q) @ vector_X.unsqueeze(-1)).squeeze(-1)


def rotation_matrix(q_Q: Tensor) -> Tensor:
    """(..., 3, 3): the matrix of `rotate` for unit quaternions."""
    _check(q_Q, "rotation_matrix")
    whole_QQ = sedenion.left_matrix(q_Q) @ sedenion.right_matrix(sedenion.conjugate(q_Q))
    return whole_QQ[..., 1:, 1:]


def from_axis_angle(axis_X: Tensor, angle: Tensor) -> Tensor:
    """The unit quaternions (..., 4) that turn by ``angle`` radians (...,) about ``axis_X`` (..., 3), of any length
    but zero; about a zero axis nothing is turned: cos(angle / 2) is then all that is left, of norm below 1."""
    unit_X = torch.nn.functional.normalize(axis_X, dim=-1, eps=torch.finfo(axis_X.dtype).tiny)
    half = (0.5 * angle).unsqueeze(-1)
    imaginary_X = unit_X * half.sin()
    return torch.cat([half.cos().expand(*imaginary_X.shape[:-1], 1), imaginary_X], dim=-1)


def to_axis_angle(q_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Unit axis (..., 3) and angle (...,) in [0, π] of the rotation by a unit quaternion: the short way round.

    The identity has no axis: (0, 0, 0) comes out.
    """
    _check(q_Q, "to_axis_angle")
    short_Q = torch.where(q_Q[..., :1] < 0, -q_Q, q_Q)
    sine = torch.linalg.vector_norm(short_Q[..., 1:], dim=-1)
    axis_X = torch.nn.functional.normalize(short_Q[..., 1:], dim=-1, eps=torch.finfo(q_Q.dtype).tiny)
    return axis_X, 2.0 * torch.atan2(sine, short_Q[..., 0])


def slerp(start_Q: Tensor, end_Q: Tensor, fraction: Tensor | float) -> Tensor:
    """The unit quaternion (..., 4) that far along the short arc between two unit quaternions (..., 4).

    Args:
        fraction: (...,) or a number; 0 gives ``start_Q``, 1 the end up to sign: of ±end the nearer one is
        taken, since
            both are the same rotation.

    Angles come from the chords |a − b| and |a + b| by atan2, and the weights are written with sinc, so that
    near-equal and opposite quaternions are as exact as others, with finite gradients (Shoemake 1985, the arc
    formula).
    """
    _check(start_Q, "slerp")
    _check(end_Q, "slerp")
    t = torch.as_tensor(fraction, dtype=start_Q.dtype, device=start_Q.device).unsqueeze(-1)
    end_Q = torch.where((start_Q * end_Q).sum(-1, keepdim=True) < 0, -end_Q, end_Q)
    chord = torch.linalg.vector_norm(start_Q - end_Q, dim=-1, keepdim=True)
    turns = torch.atan2(chord, torch.linalg.vector_norm(start_Q + end_Q, dim=-1, keepdim=True)) * (
        2.0 / torch.pi
    )  # the arc over π, at most 1/2
    whole = torch.sinc(turns)
    weight_start = (1.0 - t) * torch.sinc((1.0 - t) * turns) / whole
    weight_end = t * torch.sinc(t * turns) / whole
    return weight_start * start_Q + weight_end * end_Q


def _check(q_Q: Tensor, where: str) -> None:
    if q_Q.shape[-1:] != (4,):
        raise FusionShapeError(
            f"{where}: got a tensor of shape {tuple(q_Q.shape)}, expected quaternions (..., 4)"
        )
