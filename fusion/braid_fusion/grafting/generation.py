"""What a watched generation is told, and what it gives: plain values. Runs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from braid_fusion.errors import StabilityError
from braid_fusion.resonance.lyapunov import LyapunovMonitor
from braid_fusion.resonance.stability import StabilityMetrics, StabilityMonitor

FinishReason = Literal["length", "eos", "instability", "non_finite_state"]


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How a text goes on, and how it is watched.

    Args:
        temperature: 0 takes the likeliest token each time.
        top_k: only the k likeliest tokens; 0 is off.
        top_p: only the likeliest that make up p of the probability; 1 is off.
        max_length: tokens of prompt and text together; None: as many as the model has positions for.
        max_new_tokens: tokens of the text; None: 128, unless there is a ``max_length``.
        auto_temperature: lower the temperature while the text gets less stable, see `TemperatureControl`.
        stop_on_instability: end the text where it is sure that it diverges, see `LyapunovMonitor`.
        seed: of the draws; None: another one each time.
        eos_token_ids: that end the text; None: those of the model's generation configuration. They are tokens of the
            text, but not of its characters.
        measure_exponent: measure the Lyapunov exponent by a perturbed twin, see `PerturbedTwin`. It takes a second
            forward for each token.
        window: tokens that the Lyapunov estimate looks back at.
        min_tokens: before so many nothing is ended or lowered.
        threshold: nats per token: a rise of the entropy that may be slower than that is no divergence.

    Raises: StabilityError, naming the key, what it got and what it expected.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_length: int | None = None
    max_new_tokens: int | None = None
    auto_temperature: bool = False
    stop_on_instability: bool = False
    seed: int | None = None
    eos_token_ids: tuple[int, ...] | None = None
    measure_exponent: bool = False
    window: int = 32
    min_tokens: int = 16
    threshold: float = 0.02

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "threshold"):
            if not _is_number(getattr(self, name), float):
                raise StabilityError(f"{name}: got {getattr(self, name)!r}, expected a number")
        for name in ("top_k", "max_length", "max_new_tokens", "seed"):
            if not (
                (getattr(self, name) is None and name != "top_k") or _is_number(getattr(self, name), int)
            ):
                raise StabilityError(f"{name}: got {getattr(self, name)!r}, expected a whole number")

        def check(holds: bool, name: str, expected: str) -> None:
            if not holds:
                raise StabilityError(f"{name}: got {getattr(self, name)!r}, expected {expected}")

        check(0.0 <= self.temperature < math.inf, "temperature", "a finite number from 0 (greedy) on")
        check(self.top_k >= 0, "top_k", "0 (off) or a positive number")
        check(0.0 < self.top_p <= 1.0, "top_p", "a number in (0, 1]")
        check(self.max_length is None or self.max_length >= 1, "max_length", "at least 1, or None")
        check(
            self.max_new_tokens is None or self.max_new_tokens >= 1, "max_new_tokens", "at least 1, or None"
        )
        check(self.seed is None or 0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1, or None")
        self.monitor()

    def monitor(self) -> StabilityMonitor:
        """A monitor for one text. Raises: StabilityError."""
        lyapunov = LyapunovMonitor(self.window, self.min_tokens, self.threshold)
        return StabilityMonitor(lyapunov, self.temperature, auto_temperature=self.auto_temperature)

    def limit(self, num_prompt_tokens: int, num_positions: int | None) -> int:
        """How many tokens may follow a prompt, in a model of so many positions (None: of any number).

        Raises: StabilityError if there is no room for one.
        """
        limits = {"max_length": self.max_length, "the model's positions": num_positions}
        for name, limit in limits.items():
            if limit is not None and num_prompt_tokens >= limit:
                raise StabilityError(
                    f"prompt: got {num_prompt_tokens} tokens, expected fewer than {name} ({limit})"
                )
        rooms = [limit - num_prompt_tokens for limit in limits.values() if limit is not None]
        new_tokens = self.max_new_tokens
        if new_tokens is None and self.max_length is None:
            new_tokens = 128
        return min(rooms if new_tokens is None else [*rooms, new_tokens])


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One token. ``text`` is what became certain with it: perhaps nothing, never half a character. ``logprob`` (nats)
    and ``entropy`` (nats) are of the model's distribution before any option changed it; ``lyapunov_estimate`` (nats
    per token) is None before the second token; ``coherence`` and ``kuramoto_order`` are the means over the grafted
    layers that report them at the position before the token, None where none does; ``exponent`` (nats per token) is
    that of the perturbed twin so far."""

    token_id: int
    token: str
    text: str
    logprob: float
    entropy: float
    temperature: float
    lyapunov_estimate: float | None
    coherence: float | None
    kuramoto_order: float | None
    exponent: float | None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """``generated_text`` is what came after the prompt. ``exponent`` is None unless it was measured. ``error`` says
    which states were not finite, where that ended the text; its tokens are those before."""

    prompt: str
    generated_text: str
    tokens: tuple[GeneratedToken, ...]
    finish_reason: FinishReason
    stability_metrics: StabilityMetrics
    exponent: float | None = None
    error: str | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Of the text, without the prompt."""
        return tuple(token.token_id for token in self.tokens)
