"""Coupled oscillators that pull each other into phase (Kuramoto 1975), as physics and as a module over features.

θ̇_i = ω_i + (K/N) Σ_j sin(θ_j − θ_i) = ω_i + K r sin(ψ − θ_i) with r e^(iψ) = (1/N) Σ_j e^(iθ_j): the second
form costs N instead of N². In z = e^(iθ), Z = r e^(iψ): ż = iωz + (K/2)(Z − Z̄ z²). With Z held, the pull alone
has the exact flow z ↦ (z + w) / (1 + w̄ z), w = e^(iψ) tanh(K r t / 2), which keeps |z| = 1 for any t; so steps
may be large.

The oscillators of a position are features of that position and nothing else: positions never meet here.

Letters: N oscillators, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from braid_fusion.errors import FusionShapeError, GraftConfigError
from braid_fusion.initialisation import linear
from braid_fusion.resonance.checks import LARGEST, MOST_COUPLING, check_number, check_whole
from braid_fusion.resonance.golden import spaced_angles

ORDERS = (1, 2, 4)


def order_parameter(phases_N: Tensor) -> Tensor:
    """r = |mean of e^(iθ)|, (...,) in [0, 1], of phases (..., N) in radians."""
    return order_of(phases_N.cos(), phases_N.sin())


def order_of(cos_N: Tensor, sin_N: Tensor) -> Tensor:
    """`order_parameter` where cosines and sines are at hand."""
    return _field(cos_N, sin_N)[2].squeeze(-1) * (1.0 / cos_N.shape[-1])


def simulate(
    phases_N: Tensor,
    frequencies_N: Tensor,
    coupling: Tensor | float,
    dt: float,
    num_steps: int,
    order: int = 2,
) -> Tensor:
    """Phases (..., N) after ``num_steps`` of length ``dt``, up to whole turns.

    Args:
        phases_N: at the start, radians, float32 or float64; each leading index is a system of its own.
        frequencies_N: natural frequencies, radians per unit of time, broadcast to the phases.
        coupling: K; above zero the oscillators attract each other.
        order: of the error in ``dt``. 1 holds the field of the step's start; 2 the field of its middle, from a
            trial step of half the length; both are exact in rotation and in pull. 4 is the classical Runge–Kutta
            method, for small steps.

    Raises: GraftConfigError if ``order`` is none of 1, 2, 4, or a length or number of steps is out of range.
    """
    _check(dt, num_steps, order)
    if order == 4:
        for _ in range(num_steps):
            phases_N = _runge_kutta(phases_N, frequencies_N, coupling, dt)
        return phases_N
    # K t / 2 over N: the field's length comes as a sum.
    gain = (0.5 * dt / phases_N.shape[-1]) * coupling
    turn_N = dt * frequencies_N
    if order == 1:
        for _ in range(num_steps):
            cos_N, sin_N = phases_N.cos(), phases_N.sin()
            phases_N = _pulled(phases_N, cos_N, sin_N, _pull(cos_N, sin_N, gain)) + turn_N
        return phases_N
    half_gain, half_turn_N = 0.5 * gain, 0.5 * turn_N
    for _ in range(num_steps):
        # Half of the rotation on either side of the pull: a symmetric splitting, with the field of the middle.
        start_N = phases_N + half_turn_N
        cos_N, sin_N = start_N.cos(), start_N.sin()
        middle_N = _pulled(start_N, cos_N, sin_N, _pull(cos_N, sin_N, half_gain))
        phases_N = _pulled(start_N, cos_N, sin_N, _pull(middle_N.cos(), middle_N.sin(), gain)) + half_turn_N
    return phases_N


def _field(cos_N: Tensor, sin_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """N Re Z, N Im Z and N r, (..., 1) each. The nudge gives the square root a gradient where all cancel."""
    re, im = cos_N.sum(-1, keepdim=True) + 1e-12, sin_N.sum(-1, keepdim=True)
    return re, im, torch.hypot(re, im)


def _pull(cos_N: Tensor, sin_N: Tensor, gain: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """The field of these oscillators, as N Re Z and N Im Z, and the length that makes w of it, (..., 1) each.

    ``gain`` is K t / (2 N)."""
    re, im, sum_length = _field(cos_N, sin_N)
    return re, im, torch.tanh(sum_length * gain) / sum_length


def _pulled(phases_N: Tensor, cos_N: Tensor, sin_N: Tensor, pull: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Phases after the pull: 1 + w̄ z = z · conj(z + w) on the circle, so z ↦ z̄ (z + w) / conj(z + w), an angle of
    2 arg(z + w) − θ."""
    re, im, length = pull
    towards_N = torch.atan2(torch.addcmul(sin_N, im, length), torch.addcmul(cos_N, re, length))
    return torch.lerp(phases_N, towards_N, 2.0)


def _runge_kutta(phases_N: Tensor, frequencies_N: Tensor, coupling: Tensor | float, dt: float) -> Tensor:
    def speed(at_N: Tensor) -> Tensor:
        cos_N, sin_N = at_N.cos(), at_N.sin()
        pull_N = sin_N.mean(-1, keepdim=True) * cos_N - cos_N.mean(-1, keepdim=True) * sin_N
        return frequencies_N + coupling * pull_N

    k1_N = speed(phases_N)
    k2_N = speed(phases_N + 0.5 * dt * k1_N)
    k3_N = speed(phases_N + 0.5 * dt * k2_N)
    k4_N = speed(phases_N + dt * k3_N)
    return phases_N + (dt / 6.0) * (k1_N + 2.0 * (k2_N + k3_N) + k4_N)


def _check(dt: float, num_steps: int, order: int) -> None:
    if order not in ORDERS:
        raise GraftConfigError(f"kuramoto: order: got {order!r}, expected 1, 2 or 4")
    if dt <= 0.0 or num_steps < 0:
        raise GraftConfigError(
            f"kuramoto: got {num_steps} steps of {dt}, expected a number of 0 or more and a positive length"
        )


class KuramotoModule(nn.Module):
    """(..., D) → phases, order and features of N oscillators per position.

    Phases start at W x + the golden angles, which are spread evenly, so a position starts incoherent (r ≈ 1/√N)
    whatever the scale of x, and its ``num_steps`` of length ``dt`` carry it some way towards synchrony: order
    then tells how well its features agree. r² / (1 − r²) of equal frequencies grows by e^(K t): with the
    defaults r goes from about 0.15 to about 0.7, with K = 8 to above 0.99, with K = 0 nowhere.

    Args:
        coupling: K at the start; a parameter. Frequencies start as quantiles of a normal distribution with standard
            deviation ``frequency_spread``: they lock above K = 2 / (π g(0)) = 1.6 · spread (Kuramoto's critical
            coupling).
        num_oscillators: N.
        use_learned_frequencies: if false they stay as they start.
        order: see `simulate`; for the few large steps of a module, 1 is enough.
        generator: draws W.
    """

    frequencies: Tensor

    def __init__(
        self,
        input_dim: int,
        coupling: float = 1.5,
        num_steps: int = 5,
        num_oscillators: int = 32,
        dt: float = 0.5,
        order: int = 1,
        use_learned_frequencies: bool = True,
        frequency_spread: float = 0.3,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        _check(dt, num_steps, order)
        check_whole("kuramoto: input_dim", input_dim, 1, LARGEST)
        check_whole("kuramoto: num_oscillators", num_oscillators, 2, LARGEST)
        check_number("kuramoto: coupling", coupling, -MOST_COUPLING, MOST_COUPLING)
        self.input_dim, self.num_oscillators = input_dim, num_oscillators
        self.num_steps, self.dt, self.order = num_steps, dt, order
        # Unit-variance input then spreads phases over the whole circle.
        self.to_phases = linear(input_dim, num_oscillators, generator, gain=math.pi)
        with torch.no_grad():
            self.to_phases.bias.copy_(spaced_angles(num_oscillators))
        self.coupling = nn.Parameter(torch.tensor(float(coupling)))
        shares_N = (torch.arange(num_oscillators, dtype=torch.float64) + 0.5) / num_oscillators
        quantiles_N = (frequency_spread * torch.special.ndtri(shares_N)).float()
        if use_learned_frequencies:
            self.register_parameter("frequencies", nn.Parameter(quantiles_N))
        else:
            self.register_buffer("frequencies", quantiles_N)

    def forward(self, x_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) → phases (..., N) in radians, order (...,) in [0, 1], and the synchronised features (..., N, 2):
        cos θ, sin θ. All at least float32: a phase in bfloat16 would be off by degrees.

        Raises: FusionShapeError if the width differs.
        """
        if x_D.shape[-1:] != (self.input_dim,):
            raise FusionShapeError(
                f"kuramoto: got states of shape {tuple(x_D.shape)}, expected (..., {self.input_dim})"
            )
        phases_N = self.synchronise([self.to_phases(x_D)])
        cos_N, sin_N = phases_N.cos(), phases_N.sin()
        return phases_N, order_of(cos_N, sin_N), torch.stack([cos_N, sin_N], dim=-1)

    def synchronise(self, starts_N: Sequence[Tensor]) -> Tensor:
        """Groups of N oscillators of the same positions, all coupled to all: their phases (..., N) at the start to
        those after the module's steps, (..., groups · N), in radians, at least float32."""
        start_N, frequencies_N = starts_N[0], self.frequencies
        coupling: Tensor = self.coupling
        if len(starts_N) > 1:
            start_N, frequencies_N = torch.cat(list(starts_N), dim=-1), frequencies_N.repeat(len(starts_N))
        if start_N.dtype in (torch.float16, torch.bfloat16):
            start_N, frequencies_N, coupling = start_N.float(), frequencies_N.float(), coupling.float()
        return simulate(start_N, frequencies_N, coupling, self.dt, self.num_steps, self.order)
