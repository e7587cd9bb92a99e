"""Products of prime states: |A⟩ · |B⟩ = Σ α_p ⊗ β_q |p q⟩, states over integers. Knows no model.

The grafting document's "compositional semantics via prime multiplication", taken as an operation:
amplitudes over integers with the Dirichlet convolution (A·B)_n = Σ_{a b = n} A_a ⊗ B_b, an algebra with the unit |1⟩.
By unique factorisation, products of different multisets of primes are different, orthogonal basis states.

Letters: n, m integers of a state, A components of an amplitude (4 quaternion, 2 complex, 1 real).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from braid_fusion.errors import FusionShapeError
from braid_fusion.resonance.sedenion import DIMENSIONS, left_matrix

_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True, eq=False)
class IntegerState:
    """Σ ψ_n |n⟩ over finitely many positive integers.

    ``integers`` (n,) int64, increasing and without repetition; ``amplitudes`` (..., n, A) of any float dtype.
    Gradients flow through amplitudes. Build one by `of`, which sorts and adds up.
    """

    integers: Tensor
    amplitudes: Tensor

    @classmethod
    def of(cls, integers: Tensor | tuple[int, ...], amplitudes: Tensor) -> IntegerState:
        """A state from integers in any order; amplitudes (..., n, A) of equal ones are added.

        Raises: FusionShapeError if the numbers of both differ, an integer is below 1, or A is none of an algebra.
        """
        numbers = torch.as_tensor(integers, dtype=torch.int64, device=amplitudes.device)
        if (
            amplitudes.dim() < 2
            or amplitudes.shape[-2] != numbers.numel()
            or amplitudes.shape[-1] not in DIMENSIONS
        ):
            raise FusionShapeError(
                f"integer state: got {numbers.numel()} integers with amplitudes of shape"
                f" {tuple(amplitudes.shape)}, expected (..., as many, 1, 2, 4, 8 or 16)"
            )
        if numbers.numel() and int(numbers.min()) < 1:
            raise FusionShapeError(f"integer state: got the integer {int(numbers.min())}, expected 1 or more")
        merged, place = torch.unique(numbers.flatten(), return_inverse=True)
        shape = (*amplitudes.shape[:-2], merged.numel(), amplitudes.shape[-1])
        return cls(merged, amplitudes.new_zeros(shape).index_add(-2, place, amplitudes))

    @classmethod
    def unit(cls, amplitude_dim: int, dtype: torch.dtype = torch.float32) -> IntegerState:
        """|1⟩, which composes with any state to that state."""
        return cls.of((1,), torch.eye(1, amplitude_dim, dtype=dtype))

    def __add__(self, other: IntegerState) -> IntegerState:
        """Superposition."""
        batch = torch.broadcast_shapes(self.amplitudes.shape[:-2], other.amplitudes.shape[:-2])  # type: ignore[no-untyped-call]
        parts = [part.expand(*batch, *part.shape[-2:]) for part in (self.amplitudes, other.amplitudes)]
        return IntegerState.of(torch.cat([self.integers, other.integers]), torch.cat(parts, dim=-2))

    def __mul__(self, other: IntegerState) -> IntegerState:
        """Composition; batches broadcast. Associative and distributive up to A = 4; commutes up to A = 2.

        Raises: FusionShapeError if a product leaves 64 bits or the amplitudes are of different kinds.
        """
        if self.amplitudes.shape[-1] != other.amplitudes.shape[-1]:
            raise FusionShapeError(
                f"composition: got amplitudes of {self.amplitudes.shape[-1]} and {other.amplitudes.shape[-1]}"
                " components, expected the same for both"
            )
        largest = [int(state.integers[-1]) if state.integers.numel() else 0 for state in (self, other)]
        if largest[0] * largest[1] > _LARGEST:
            raise FusionShapeError(
                f"composition: got integers up to {largest[0]} and {largest[1]}, expected products below 2^63"
            )
        products_nm = self.integers[:, None] * other.integers
        left_nAA = left_matrix(self.amplitudes).unsqueeze(-3)
        pairs_nmA = (left_nAA @ other.amplitudes[..., None, :, :, None]).squeeze(-1)
        return IntegerState.of(products_nm.flatten(), pairs_nmA.flatten(-3, -2))

    def amplitude(self, integer: int) -> Tensor:
        """(..., A): zero where the state has none of that integer."""
        hit_n = (self.integers == integer).to(self.amplitudes.dtype)
        return torch.einsum("...na,n->...a", self.amplitudes, hit_n)

    def squared_norm(self) -> Tensor:
        """(...,): Σ |ψ_n|²."""
        return self.amplitudes.square().sum((-2, -1))
