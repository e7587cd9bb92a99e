"""What is told of each token of a generation that is watched, and the temperature that follows from it.

Serves the generator over grafted models and the engine of a braid alike. Knows neither models nor requests: figures
of one token go in, and what is to be told of it comes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from braid_fusion.errors import StabilityError
from braid_fusion.resonance.lyapunov import LyapunovMonitor

# The names under which resonance layers report a row's coherence, the one that is meant first.
_COHERENCES = ("gate_coherence", "prime_coherence")
_ORDER = "kuramoto_order"


@dataclass(frozen=True, slots=True)
class TokenStability:
    """Of one token: the entropy (nats) of the distribution that it was drawn from, before any sampling option
    changed that; the running Lyapunov estimate (nats per token, None before the second token); the temperature that
    it was drawn at; coherence and Kuramoto order parameter of the states behind it, None where nothing reports any.
    """

    entropy: float
    lyapunov_estimate: float | None
    temperature: float
    coherence: float | None = None
    kuramoto_order: float | None = None


@dataclass(frozen=True, slots=True)
class StabilityMetrics:
    """Of a whole generation: means over its tokens, the last token's Lyapunov estimate, and whether at no token it
    was sure that the text diverged. NaN where nothing was reported: whoever prints figures need not ask first."""

    mean_entropy: float
    mean_coherence: float
    mean_kuramoto_order: float
    lyapunov_estimate: float
    is_stable: bool


class TemperatureControl:
    """Lowers the temperature while a generation gets less stable, and lets it return otherwise.

    With λ the lower end of the slope's confidence interval, one standard deviation down (so that noise alone hardly
    moves anything), c the coherence smoothed over the last tokens and c̄ its mean over all:

        u = max(λ, 0) / threshold + max(1 − c / c̄, 0) / 0.2
        f ← f + (floor + (1 − floor) e⁻ᵘ − f) / 4,   temperature = f · the one asked for

    f starts at 1 and never leaves [floor, 1]: a temperature is lowered to half at most, and never raised. Without a
    rise of entropy or a fall of coherence u is 0, and f goes back to 1, a quarter of the way per token. Before the
    monitor's ``min_tokens`` nothing is changed. The law is our own: the grafting document
    only says that the temperature is adjusted.
    """

    floor = 0.5
    _fall = 0.2
    _rate = 0.25
    _smoothing = 0.2

    def __init__(self, temperature: float) -> None:
        """``temperature`` is the one asked for, in whose range it stays."""
        self._asked = temperature
        self._factor = 1.0
        self._recent: float | None = None

    @property
    def temperature(self) -> float:
        """For the next token."""
        return self._asked * self._factor

    def follow(self, monitor: LyapunovMonitor, coherence: float | None, mean_coherence: float | None) -> None:
        """Take in what the next token's distribution shows; the monitor has seen it."""
        if coherence is not None:
            before = coherence if self._recent is None else self._recent
            self._recent = before + self._smoothing * (coherence - before)
        if monitor.num_tokens < monitor.min_tokens:
            return
        unrest = max(monitor.lower_bound(1.0), 0.0) / max(monitor.threshold, 1e-6)
        if self._recent is not None and mean_coherence is not None and mean_coherence > 0.0:
            unrest += max(1.0 - self._recent / mean_coherence, 0.0) / self._fall
        aim = self.floor + (1.0 - self.floor) * math.exp(-unrest)
        self._factor += self._rate * (aim - self._factor)


class _Mean:
    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self._sum += value
            self._count += 1

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


class StabilityMonitor:
    """All of one generation. The state is a function of the figures observed, so whoever kept those can build it
    again; its size doesn't grow."""

    def __init__(
        self, lyapunov: LyapunovMonitor, temperature: float, *, auto_temperature: bool = False
    ) -> None:
        """``temperature`` is the one asked for; with ``auto_temperature`` a `TemperatureControl` lowers it."""
        self._lyapunov = lyapunov
        self._asked = temperature
        self._control = TemperatureControl(temperature) if auto_temperature else None
        self._entropy, self._coherence, self._order = _Mean(), _Mean(), _Mean()

    @property
    def is_stable(self) -> bool:
        """See `LyapunovMonitor.is_stable`."""
        return self._lyapunov.is_stable

    def observe(
        self, entropy: float, coherence: float | None = None, kuramoto_order: float | None = None
    ) -> TokenStability:
        """Take what is known of the next token's distribution; returns what is to be told of the token, the
        temperature to draw it at among it. Raises: StabilityError for what is no finite number."""
        for name, value in (("coherence", coherence), ("kuramoto_order", kuramoto_order)):
            if value is not None and not math.isfinite(value):
                raise StabilityError(f"{name}: got {value}, expected a finite number")
        estimate = self._lyapunov.observe(entropy)
        self._entropy.add(entropy)
        self._coherence.add(coherence)
        self._order.add(kuramoto_order)
        temperature = self._asked
        if self._control is not None:
            self._control.follow(self._lyapunov, coherence, self._coherence.value)
            temperature = self._control.temperature
        return TokenStability(entropy, estimate, temperature, coherence, kuramoto_order)

    def summary(self) -> StabilityMetrics:
        """Up to now."""
        return StabilityMetrics(
            mean_entropy=_figure(self._entropy.value),
            mean_coherence=_figure(self._coherence.value),
            mean_kuramoto_order=_figure(self._order.value),
            lyapunov_estimate=_figure(self._lyapunov.estimate),
            is_stable=self._lyapunov.is_stable,
        )


def _figure(value: float | None) -> float:
    return math.nan if value is None else value


def coherence_of(metrics: Mapping[str, float]) -> float | None:
    """A row's coherence among what resonance layers report of it: the gate's, else that of the prime amplitudes."""
    return next((metrics[name] for name in _COHERENCES if name in metrics), None)


def order_of(metrics: Mapping[str, float]) -> float | None:
    """A row's Kuramoto order parameter among what resonance layers report of it."""
    return metrics.get(_ORDER)
