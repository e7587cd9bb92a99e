"""How stable a generated text is: what may be asked, and what is told, as plain values. Knows no messages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from braid_rpc.errors import InvalidRequestError

# The estimate looks at all pairs of the window's tokens.
_MAX_WINDOW = 128
_FEWEST_TOKENS = 4


@dataclass(frozen=True, slots=True)
class StabilityOptions:
    """Ask that a generation is watched; with the defaults it is only told about, and its text stays the same.

    ``stop`` ends a choice, with the reason "instability", where it is sure that it diverges: that the entropy of the
    next token rises faster than ``threshold`` (nats per token) over the last ``window`` tokens. ``auto_temperature``
    lowers the temperature while the text gets less stable. Before ``min_tokens`` tokens nothing is done.
    """

    stop: bool = False
    auto_temperature: bool = False
    threshold: float = 0.02
    window: int = 32
    min_tokens: int = 16

    def validate(self) -> None:
        """Raises: InvalidRequestError, naming the option, what it got and what is allowed."""
        if not 0.0 <= self.threshold < math.inf:
            raise InvalidRequestError(
                f"stability.threshold: got {self.threshold!r}, expected a finite number of nats per token from 0 on"
            )
        if not isinstance(self.window, int) or not _FEWEST_TOKENS <= self.window <= _MAX_WINDOW:
            raise InvalidRequestError(
                f"stability.window: got {self.window!r}, expected between {_FEWEST_TOKENS} and {_MAX_WINDOW} tokens"
            )
        if not isinstance(self.min_tokens, int) or self.min_tokens < _FEWEST_TOKENS:
            raise InvalidRequestError(
                f"stability.min_tokens: got {self.min_tokens!r}, expected at least {_FEWEST_TOKENS}"
            )


@dataclass(frozen=True, slots=True)
class TokenStability:
    """Of one token: the entropy (nats) of the readout's distribution before any sampling option changed it; the
    running Lyapunov estimate, how fast that entropy rises (nats per token; None before the second token); the
    temperature that the token was drawn at; coherence and Kuramoto order parameter of the states behind it, None
    where no fusion point reports any."""

    entropy: float
    lyapunov_estimate: float | None
    temperature: float
    coherence: float | None = None
    kuramoto_order: float | None = None


@dataclass(frozen=True, slots=True)
class ChoiceStability:
    """Of a whole choice: means over its tokens, the Lyapunov estimate at its last, and whether at no token it was
    sure that the text diverged. None where nothing was reported."""

    mean_entropy: float | None
    mean_coherence: float | None
    mean_kuramoto_order: float | None
    lyapunov_estimate: float | None
    is_stable: bool
