"""PRSC, prime resonance semantic coherence: each position's prime state composed with the one before it.

Owns the composition and its blend. The published definition: composition of neighbouring positions by the Hamilton
product, blended in (the grafting document names it).

Letters: B batch, T positions, P primes, A components of an amplitude (4 quaternion, 2 complex), X all P A of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.resonance.sedenion import DIMENSIONS, product
from braid_fusion.row_cache import RowCache

_START = 0.1
# The least norm that a state is divided by: the zero state stays zero, with a finite gradient.
_FLOOR = 1e-10


class PRSC(nn.Module):
    """ψ'_t = ψ_t + β ⊙ (ψ̂_{t−1} ⊗ ψ_t), prime by prime, with ψ̂ the state before at root mean square modulus 1.

    The product turns and scales each prime's amplitude by that of the position before: primes that both have
    grow, and the order of the two matters, since quaternions do not commute. Normalising the one before keeps
    the result linear in the scale of the input. β (one per prime) is learned and starts at 0.1. The first
    position has none before: it stays.

    Args:
        num_primes, amplitude_dim: P and A.
    """

    def __init__(self, num_primes: int, amplitude_dim: int = 4) -> None:
        super().__init__()
        if num_primes < 1 or amplitude_dim not in DIMENSIONS:
            raise GraftConfigError(
                f"prsc: got {num_primes} primes with amplitudes of {amplitude_dim} components, expected at least 1"
                f" and one of {DIMENSIONS}"
            )
        self.num_primes, self.amplitude_dim = num_primes, amplitude_dim
        self.blend_P = nn.Parameter(torch.full((num_primes,), _START))

    def forward(self, states_BTPA: Tensor, history: RowCache | None = None) -> Tensor:
        """(B, T, P, A) → (B, T, P, A). Position t sees t and t − 1.

        With ``history`` B is 1 and the rows follow those that it holds. Raises: FusionShapeError.
        """
        shape = tuple(states_BTPA.shape)
        if len(shape) != 4 or shape[2:] != (self.num_primes, self.amplitude_dim):
            raise FusionShapeError(
                f"prsc: got states of shape {shape}, expected (B, T, {self.num_primes}, {self.amplitude_dim})"
            )
        unit_BTX = functional.normalize(states_BTPA.flatten(2), dim=-1, eps=_FLOOR)
        before_BTPA = rows_before(unit_BTX, history, "state").view(shape)
        return torch.addcmul(
            states_BTPA,
            self.blend_P.unsqueeze(-1).to(states_BTPA.dtype),
            product(before_BTPA, states_BTPA),
            value=math.sqrt(self.num_primes),  # from a norm of 1 to a root mean square modulus of 1
        )


def rows_before(rows_BT: Tensor, history: RowCache | None, name: str) -> Tensor:
    """(B, T, ...): at each position the row of the one before; zeros at the very first.

    Raises: FusionShapeError if there is a history and more than one sequence.
    """
    if history is None:
        first = rows_BT.new_zeros((rows_BT.shape[0], 1, *rows_BT.shape[2:]))
        return torch.cat([first, rows_BT[:, :-1]], dim=1)
    if rows_BT.shape[0] != 1:
        raise FusionShapeError(f"got {rows_BT.shape[0]} sequences with one history, expected 1")
    rows_T = rows_BT[0]
    all_T = history.append(name, rows_T)
    if all_T.shape[0] > rows_T.shape[0]:
        return all_T[-rows_T.shape[0] - 1 : -1].unsqueeze(0)
    return rows_before(rows_BT, None, name)
