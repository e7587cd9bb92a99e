"""How concentrated a state is on few primes, and a gate that opens for concentrated ones.

Owns mass, entropy and coherence of prime states and their scale. How states come about is ``primes.py``'s.

q_p = Σ_a ψ²_{p,a} / Σ q, S = −Σ_p q_p log₂ q_p in bits, C = 1 − S / log₂ P in [0, 1]: 1 if one prime has all, 0
if all have the same (the published definitions of the resonance layers; the grafting document
names them).

Letters: P primes, A components of an amplitude (4 quaternion, 2 complex), D width.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Generator, Tensor, nn

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.initialisation import linear
from braid_fusion.resonance.checks import LARGEST, check_whole

# Added to each prime's mass: the zero state then counts as evenly spread, and has a gradient, which is zero.
_FLOOR = 1e-20


def masses(states_PA: Tensor) -> Tensor:
    """(..., P): each prime's share q of a state (..., P, A); evenly spread for the zero state. At least float32."""
    mass_P = squared(states_PA)
    return mass_P / mass_P.sum(-1, keepdim=True)


def entropy(states_PA: Tensor) -> Tensor:
    """(...,): S in bits, from 0 to log₂ P. At least float32. Independent of the state's scale."""
    return entropy_of(squared(states_PA))


def entropy_of(mass_P: Tensor) -> Tensor:
    """`entropy` where the squared moduli are at hand: (..., P) as `squared` gives them, to (...,) in bits."""
    total = mass_P.sum(-1)
    # S = log M − Σ m log m / M: neither a division per prime nor the logarithm of a zero.
    return (total.log() - torch.xlogy(mass_P, mass_P).sum(-1) / total) * (1.0 / math.log(2.0))


def coherence(states_PA: Tensor) -> Tensor:
    """(...,): C = 1 − S / log₂ P in [0, 1]. At least float32."""
    return coherence_from_entropy(entropy(states_PA), states_PA.shape[-2])


def coherence_from_entropy(entropy_bits: Tensor, num_primes: int) -> Tensor:
    """C of an entropy in bits, where it is at hand already."""
    return (1.0 - entropy_bits * (1.0 / math.log2(num_primes))).clamp(0.0, 1.0)


def squared(states_PA: Tensor) -> Tensor:
    """(..., P): each amplitude's squared modulus, a little above zero for the zero state. At least float32.

    Raises: FusionShapeError unless the states are (..., P, A) with at least 2 primes.
    """
    if states_PA.dim() < 2 or states_PA.shape[-2] < 2:
        raise FusionShapeError(
            f"got prime states of shape {tuple(states_PA.shape)}, expected (..., P, A) with at least 2 primes"
        )
    if states_PA.dtype in (torch.float16, torch.bfloat16):  # squares leave float16's range at 256
        states_PA = states_PA.float()
    return states_PA.square().sum(-1) + _FLOOR


def random_state_coherence(num_primes: int, amplitude_dim: int) -> tuple[float, float]:
    """Mean and standard deviation of C over random states: independent normal amplitudes, of whatever scale.

    Their masses have a Dirichlet distribution with all parameters A/2, whose entropy has these moments (Wolpert and
    Wolf 1995, "Estimating functions of probability distributions from a finite set of samples", equations 23–26).
    """
    alpha, total = amplitude_dim / 2.0, num_primes * amplitude_dim / 2.0
    at = torch.tensor([total + 1, alpha + 1, total + 2, alpha + 2], dtype=torch.float64)
    psi_total1, psi_one1, psi_total2, psi_one2 = torch.digamma(at).tolist()
    _, _, slope_total2, slope_one2 = torch.polygamma(1, at).tolist()
    mean = psi_total1 - psi_one1
    same = (psi_one2 - psi_total2) ** 2 + slope_one2 - slope_total2
    other = (psi_one1 - psi_total2) ** 2 - slope_total2
    pairs = total * (total + 1)
    second = (
        num_primes * alpha * (alpha + 1) * same + num_primes * (num_primes - 1) * alpha**2 * other
    ) / pairs
    largest = math.log(num_primes)
    return 1.0 - mean / largest, math.sqrt(second - mean**2) / largest


class CoherenceGate(nn.Module):
    """The gate alone: coherence (...,) → gate (...,) in (0, 1).

    gate = σ(steepness · (z − offset)), z = (C − mean) / spread with the mean and spread of random states of
    this many primes. A threshold on C itself, as published, is shut for good: of 25 primes a random state has C
    ≈ 0.07 (quaternions) to 0.21 (real). ``threshold`` is a fraction of random states instead: offset starts where
    that share of them lies below, so 0.7 lets pass the most coherent 30 %. Steepness and offset are learned.

    Args:
        num_primes, amplitude_dim: P and A of the states whose coherence comes in.
        threshold: in [0, 1]; nearer to either end than 0.001 it is read as that.
        soft_gate: if false, the gate is 0 or 1 (1 above the offset) and its gradient that of the soft one.
    """

    mean: float
    spread: float

    def __init__(
        self, num_primes: int = 25, amplitude_dim: int = 4, threshold: float = 0.7, soft_gate: bool = True
    ) -> None:
        super().__init__()
        if not 0.0 <= threshold <= 1.0:
            raise GraftConfigError(
                f"coherence gate: threshold: got {threshold!r}, expected a number from 0 to 1"
            )
        if num_primes < 2 or amplitude_dim < 1:
            raise GraftConfigError(
                f"coherence gate: got {num_primes} primes with amplitudes of {amplitude_dim} components, expected at"
                " least 2 and 1"
            )
        self.mean, self.spread = random_state_coherence(num_primes, amplitude_dim)
        self.soft_gate = soft_gate
        normal_quantile = math.sqrt(2.0) * float(
            torch.erfinv(torch.tensor(2.0 * min(max(threshold, 0.001), 0.999) - 1.0))
        )
        self.offset = nn.Parameter(torch.tensor(normal_quantile))
        self.steepness = nn.Parameter(torch.tensor(1.0))

    def forward(self, coherence: Tensor) -> Tensor:
        """(...,) → (...,), dtype kept."""
        centred = (coherence - self.mean) * (1.0 / self.spread) - self.offset
        soft = torch.sigmoid(self.steepness * centred)
        if self.soft_gate:
            return soft
        return soft + ((centred > 0).to(soft.dtype) - soft).detach()


class CoherenceGatingLayer(nn.Module):
    """States times the gate of their coherence: incoherent ones are attenuated, coherent ones pass.

    Args:
        hidden_dim: D.
        threshold, soft_gate, num_primes, amplitude_dim: see `CoherenceGate`.
        own_projection: if false there is no map of its own to prime states, and `forward` wants the coherence.
        generator: draws the projection.
    """

    def __init__(
        self,
        hidden_dim: int,
        threshold: float = 0.7,
        soft_gate: bool = True,
        num_primes: int = 25,
        amplitude_dim: int = 4,
        own_projection: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        check_whole("coherence gate: hidden_dim", hidden_dim, 1, LARGEST)
        self.gate = CoherenceGate(num_primes, amplitude_dim, threshold, soft_gate)
        self.hidden_dim, self.num_primes, self.amplitude_dim = hidden_dim, num_primes, amplitude_dim
        self.projection = (
            linear(hidden_dim, num_primes * amplitude_dim, generator, bias=False) if own_projection else None
        )

    def forward(self, x_D: Tensor, coherence: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(..., D) → the gated states (..., D) and the coherence (...,), which is taken as given where it is.

        Raises: FusionShapeError if the width differs, or if no coherence comes and there is no own projection.
        """
        if x_D.shape[-1:] != (self.hidden_dim,):
            raise FusionShapeError(
                f"coherence gate: got states of shape {tuple(x_D.shape)}, expected (..., {self.hidden_dim})"
            )
        if coherence is None:
            coherence = self.coherence(x_D)
        gate = cast(Tensor, self.gate(coherence))
        return x_D * gate.to(x_D.dtype).unsqueeze(-1), coherence

    def coherence(self, x_D: Tensor) -> Tensor:
        """(..., D) → (...,) by the layer's own projection."""
        if self.projection is None:
            raise FusionShapeError(
                "coherence gate: got no coherence, expected it: it has no projection of its own"
            )
        states = self.projection(x_D)
        return coherence(states.view(*x_D.shape[:-1], self.num_primes, self.amplitude_dim))
