"""States over primes: a map of hidden states to amplitudes |ψ⟩ = Σ_p α_p |p⟩, and how two such states interfere.

Owns the projection and the similarity. Products of states over integers are ``composition.py``'s, mass and entropy
``coherence.py``'s. The formulas follow the grafting document ("Prime Hilbert Space").

Letters: D width, P primes, A components of an amplitude (Q: 4 quaternion, or 2 complex).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid_fusion.errors import FusionShapeError
from braid_fusion.initialisation import linear
from braid_fusion.resonance import coherence as measures
from braid_fusion.resonance.checks import LARGEST, check_whole
from braid_fusion.resonance.composition import IntegerState
from braid_fusion.resonance.golden import sphere_points
from braid_fusion.resonance.sedenion import conjugate, left_matrix


def first_primes(count: int) -> tuple[int, ...]:
    """The first ``count`` primes, by sieve. Raises: GraftConfigError if ``count`` is below 1."""
    check_whole("primes", count, 1, LARGEST)
    # p_n < n (ln n + ln ln n) for n ≥ 6 (Rosser 1962).
    bound = 14 if count < 6 else int(count * (math.log(count) + math.log(math.log(count)))) + 1
    is_prime = bytearray([1]) * (bound + 1)
    is_prime[:2] = b"\0\0"
    for number in range(2, math.isqrt(bound) + 1):
        if is_prime[number]:
            is_prime[number * number :: number] = bytes(len(range(number * number, bound + 1, number)))
    return tuple(number for number, prime in enumerate(is_prime) if prime)[:count]


class PrimeProjection(nn.Module):
    """(..., D) → amplitudes (..., P, A): α_p = e^(φ_p u_p) ⊗ (W_p x), A = 4 with quaternions, else 2.

    The map is linear and without bias: superpositions go to superpositions, and masses do not depend on the
    scale of x.

    A phase turns one prime's amplitude: by left multiplication with the unit quaternion cos φ_p + u_p sin φ_p
    (u_p fixed, on a Fibonacci sphere), or e^(iφ_p). It changes no mass, entropy or coherence; it changes what
    meets elsewhere: interference between states and everything that reads components. Phases start at φ_p = log
    p, so that the phase of a product of primes is the sum of theirs. They are folded into W, which costs the
    same for any number of rows.

    Args:
        num_primes: P, at least 2.
        learnable_phases: if false, phases stay at log p.
        generator: draws W.
    """

    phases: Tensor
    turns: Tensor

    def __init__(
        self,
        input_dim: int,
        num_primes: int = 25,
        use_quaternion: bool = True,
        learnable_phases: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        check_whole("prime projection: input_dim", input_dim, 1, LARGEST)
        check_whole("prime projection: num_primes", num_primes, 2, LARGEST)
        self.primes = first_primes(num_primes)
        self.input_dim, self.num_primes = input_dim, num_primes
        self.amplitude_dim = 4 if use_quaternion else 2
        self.weight = linear(input_dim, num_primes * self.amplitude_dim, generator, bias=False).weight
        log_p = torch.tensor([math.log(prime) for prime in self.primes])
        if learnable_phases:
            self.register_parameter("phases", nn.Parameter(log_p))
        else:
            self.register_buffer("phases", log_p)
        axes_PA = torch.zeros(num_primes, self.amplitude_dim)
        if use_quaternion:
            axes_PA[:, 1:] = sphere_points(num_primes)
        else:
            axes_PA[:, 1] = 1.0
        self.register_buffer("turns", left_matrix(axes_PA), persistent=False)

    def forward(self, x_D: Tensor) -> Tensor:
        """(..., D) → (..., P, A). Raises: FusionShapeError if the width differs."""
        if x_D.shape[-1:] != (self.input_dim,):
            raise FusionShapeError(
                f"prime projection: got states of shape {tuple(x_D.shape)}, expected (..., {self.input_dim})"
            )
        states = functional.linear(x_D, self._turned_weight())
        return states.view(*x_D.shape[:-1], self.num_primes, self.amplitude_dim)

    def _turned_weight(self) -> Tensor:
        """W with each prime's rows turned by its phase, (P A, D)."""
        weight_PAD = self.weight.view(self.num_primes, self.amplitude_dim, self.input_dim)
        phases_P11 = self.phases.view(-1, 1, 1)
        turned_PAD = torch.baddbmm(weight_PAD * phases_P11.cos(), self.turns * phases_P11.sin(), weight_PAD)
        return turned_PAD.view(-1, self.input_dim)

    def entropy(self, states_PA: Tensor) -> Tensor:
        """(..., P, A) → (...,): in bits, 0 to log₂ P."""
        return measures.entropy(states_PA)

    def coherence(self, states_PA: Tensor) -> Tensor:
        """(..., P, A) → (...,) in [0, 1]: 1 if one prime has all mass, 0 if all have the same."""
        return measures.coherence(states_PA)

    def compose(self, left_PA: Tensor, right_PA: Tensor) -> IntegerState:
        """The product of two prime states, Σ α_p ⊗ β_q |p q⟩, over the products of this projection's primes."""
        return IntegerState.of(self.primes, left_PA) * IntegerState.of(self.primes, right_PA)


def inner_product(left_PA: Tensor, right_PA: Tensor) -> Tensor:
    """⟨left|right⟩ = Σ_p left_p* ⊗ right_p, (..., A): a number of the amplitudes' own kind."""
    return (left_matrix(conjugate(left_PA)) @ right_PA.unsqueeze(-1)).squeeze(-1).sum(-2)


def interference(left_PA: Tensor, right_PA: Tensor) -> Tensor:
    """|⟨left|right⟩|² / (|left|² |right|²), (...,) in [0, 1]: 1 for equal states, 0 for orthogonal ones.

    Amplitudes of the same prime interfere: turning one prime's phase against the others' changes the value, turning
    all of a state's amplitudes from the right by one unit number does not. The zero state has similarity 0 to all.
    """
    overlap = inner_product(left_PA, right_PA).square().sum(-1)
    weight = left_PA.square().sum((-2, -1)) * right_PA.square().sum((-2, -1))
    return overlap / weight.clamp_min(torch.finfo(weight.dtype).tiny)
