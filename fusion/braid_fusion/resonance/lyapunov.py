"""Whether what is generated diverges: how fast the entropy of the next token rises, and how fast nearby states part.

Two figures go by the name of a Lyapunov exponent here. `LyapunovMonitor` follows the grafting document,
which takes λ ≈ d(entropy)/dt: cheap, always there, and no exponent in the strict
sense. `finite_time_exponent` and `BenettinTwin` measure the real one, from a trajectory and a perturbed twin. Knows
nothing of models, tokens and temperatures.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import cache

import torch
from torch import Generator, Tensor

from braid_fusion.errors import StabilityError

# Of fewer tokens no order is remarkable: four stand in ascending order once in 24 times.
_FEWEST_TOKENS = 4


class LyapunovMonitor:
    """A running estimate of d(entropy)/dt over the last ``window`` tokens of one text, in the unit of the entropies
    per token: nats per token where entropies are in nats, bits per token where they are in bits.

    The entropies of a good text jump: a function word follows from what stands before it, a name doesn't. A least
    squares slope follows every jump, so the slope is Theil and Sen's, the median of the slopes of all pairs of
    tokens (Sen 1968, J. Am. Stat. Assoc. 63, p. 1379), which up to 29 % of outliers can't move far.

    A text counts as diverging where it is *sure* that its entropy rises: at least ``min_tokens`` were seen, and the
    lower end of the slope's confidence interval, ``confidence`` standard deviations down (Sen 1968: the quantile of
    the pairs' slopes that Kendall's statistic gives), lies above ``threshold``. So one uncertain
    word never ends a text, a noisy text needs a steeper rise than a calm one, and the fewer tokens there are the
    steeper it must be. A text that diverged once counts as unstable from then on.

    Memory is ``window`` numbers, whatever the length of the text. The state is a function of the entropies seen.
    """

    def __init__(
        self, window: int = 32, min_tokens: int = 16, threshold: float = 0.02, confidence: float = 3.0
    ) -> None:
        """Raises: StabilityError, naming the option, what it got and what is allowed."""
        for name, count in (("window", window), ("min_tokens", min_tokens)):
            if not isinstance(count, int) or count < _FEWEST_TOKENS:
                raise StabilityError(
                    f"{name}: got {count!r}, expected a whole number from {_FEWEST_TOKENS} on"
                )
        for name, limit in (("threshold", threshold), ("confidence", confidence)):
            if not 0.0 <= limit < math.inf:
                raise StabilityError(f"{name}: got {limit!r}, expected a finite number from 0 on")
        self.threshold = threshold
        self.min_tokens = min_tokens
        self._confidence = confidence
        self._entropies: deque[float] = deque(maxlen=window)
        self._slopes = torch.empty(0, dtype=torch.float64)
        self._num_tokens = 0
        self._has_diverged = False

    def observe(self, entropy: float) -> float | None:
        """Take the next token's entropy; returns the estimate. Raises: StabilityError if it is no finite number."""
        if not math.isfinite(entropy):
            raise StabilityError(
                f"entropy of token {self._num_tokens}: got {entropy}, expected a finite number"
            )
        self._entropies.append(entropy)
        self._num_tokens += 1
        self._slopes = _pairwise_slopes(torch.tensor(self._entropies, dtype=torch.float64))
        self._has_diverged = self._has_diverged or self.is_diverging
        return self.estimate

    @property
    def num_tokens(self) -> int:
        """All that were seen."""
        return self._num_tokens

    @property
    def estimate(self) -> float | None:
        """The slope over the window, by token; None before the second token."""
        num_pairs = self._slopes.numel()
        if not num_pairs:
            return None
        return float(self._slopes[(num_pairs - 1) // 2] + self._slopes[num_pairs // 2]) / 2

    def lower_bound(self, confidence: float) -> float:
        """The slope is hardly below this: the lower end of its confidence interval, so many standard deviations of
        Kendall's statistic down. Minus infinity while there are too few tokens for that much confidence."""
        count, num_pairs = len(self._entropies), self._slopes.numel()
        deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
        rank = math.floor((num_pairs - confidence * deviation) / 2)
        return float(self._slopes[rank]) if 0 <= rank < num_pairs else -math.inf

    @property
    def is_diverging(self) -> bool:
        """Now, within the window."""
        return self._num_tokens >= self.min_tokens and self.lower_bound(self._confidence) > self.threshold

    @property
    def is_stable(self) -> bool:
        """At no token so far was it sure that the text diverged."""
        return not self._has_diverged


def _pairwise_slopes(values_W: Tensor) -> Tensor:
    """The slopes of all pairs, ascending."""
    earlier, later = _pairs(values_W.numel())
    slopes = (values_W[later] - values_W[earlier]) / (later - earlier)
    return slopes.sort().values


@cache
def _pairs(count: int) -> tuple[Tensor, Tensor]:
    earlier, later = torch.triu_indices(count, count, offset=1).unbind()
    return earlier, later


class BenettinTwin:
    """The largest Lyapunov exponent of a trajectory from a twin that starts a little beside it, step by step.

    After each step the twin is brought back to the first distance in the direction in which it went, and the
    logarithms of what it had gained are averaged (Benettin, Galgani, Giorgilli and Strelcyn 1980, Meccanica 15,
    p. 9 and 21): nats per step. Memory is one direction. Where a twin meets its trajectory exactly, the step counts
    as a loss down to the resolution of the states' dtype, and a new direction is drawn.
    """

    def __init__(self, distance: float, generator: Generator) -> None:
        """``distance`` is a twin's from its trajectory (Euclidean), small against what the map's curvature shows at
        and large against the resolution of the states. Raises: StabilityError."""
        if not 0.0 < distance < math.inf:
            raise StabilityError(f"distance: got {distance!r}, expected a positive number")
        self.distance = distance
        self._generator = generator
        self._sum = 0.0
        self._num_steps = 0

    @property
    def num_steps(self) -> int:
        """Steps noted."""
        return self._num_steps

    @property
    def estimate(self) -> float | None:
        """Nats per step, over all steps so far; None before the first."""
        return self._sum / self._num_steps if self._num_steps else None

    def begin(self, state: Tensor) -> Tensor:
        """A twin of a state, in a random direction."""
        drawn = torch.randn(state.shape, generator=self._generator, dtype=torch.float64)
        twin: Tensor = state + (drawn * (self.distance / drawn.norm())).to(state)
        return twin

    def renormalise(self, state: Tensor, twin: Tensor) -> Tensor:
        """Note how far apart one step brought the two; returns the twin for the next.

        Raises: StabilityError for states that are not finite.
        """
        apart = (twin - state).detach()
        distance = float(apart.norm())
        if not math.isfinite(distance):
            raise StabilityError(
                f"step {self._num_steps}: got a twin at distance {distance}, expected finite states"
            )
        resolution = torch.finfo(state.dtype).eps
        growth = distance / self.distance
        self._sum += math.log(max(growth, resolution))
        self._num_steps += 1
        beside: Tensor = state + apart / growth if growth > 0.0 else self.begin(state)
        return beside


def finite_time_exponent(
    step: Callable[[Tensor], Tensor],
    state: Tensor,
    num_steps: int,
    *,
    transient: int = 0,
    distance: float = 1e-7,
    generator: Generator | None = None,
) -> float:
    """The largest Lyapunov exponent of a map, in nats per step, from ``num_steps`` steps of a trajectory and a twin.

    Args:
        step: the map, on states of any one shape; float64 is advised.
        state: where it starts.
        transient: steps before those that count, in which the trajectory reaches its attractor and the twin turns
            into the direction that grows fastest.
        distance: see `BenettinTwin`.
        generator: draws the first direction; None: one of seed 0.

    Raises: StabilityError for states that are not finite, or a number of steps below 1.
    """
    if num_steps < 1:
        raise StabilityError(f"num_steps: got {num_steps}, expected at least 1")
    generator = generator or torch.Generator().manual_seed(0)
    turning = BenettinTwin(distance, generator)
    twin = turning.begin(state)
    for _ in range(transient):
        state, twin = step(state), step(twin)
        twin = turning.renormalise(state, twin)
    counted = BenettinTwin(distance, generator)
    for _ in range(num_steps):
        state, twin = step(state), step(twin)
        twin = counted.renormalise(state, twin)
    estimate = counted.estimate
    return math.nan if estimate is None else estimate
