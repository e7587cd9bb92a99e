"""Watches how stable one choice is: what is told of its tokens, and when it has to end. Knows no shards.

Shapes: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from braid_fusion.resonance.lyapunov import LyapunovMonitor
from braid_fusion.resonance.stability import StabilityMonitor, coherence_of, order_of
from braid_rpc.stability import ChoiceStability, StabilityOptions, TokenStability
from braid_services.fusion.translation import braid_errors


class Watch:
    """The monitor of one choice. Its state follows from what was told of the tokens so far, so it goes on with the
    sequence wherever that starts again, and can be built from a journal."""

    def __init__(self, options: StabilityOptions, temperature: float) -> None:
        """``temperature`` is the one that the request asked for."""
        self._stops = options.stop
        self._monitor = StabilityMonitor(
            LyapunovMonitor(options.window, options.min_tokens, options.threshold),
            temperature,
            auto_temperature=options.auto_temperature,
        )

    def observe(self, scores_V: Tensor, row_metrics: Mapping[str, float]) -> TokenStability:
        """What is told of the token to be drawn from these scores: its temperature too.

        Args:
            row_metrics: what fusion points tell of the row that the scores come from.

        Raises: BraidError for scores or metrics that are no finite numbers.
        """
        entropy = float(torch.special.entr(torch.softmax(scores_V.float(), dim=-1)).sum())
        with braid_errors():
            told = self._monitor.observe(entropy, coherence_of(row_metrics), order_of(row_metrics))
        return TokenStability(**asdict(told))

    def replay(self, told: TokenStability) -> None:
        """As if this had just been observed."""
        self._monitor.observe(told.entropy, told.coherence, told.kuramoto_order)

    @property
    def has_to_end(self) -> bool:
        """The text diverged, and that is to end it."""
        return self._stops and not self._monitor.is_stable

    def summary(self) -> ChoiceStability:
        """Of the choice up to now."""
        metrics = self._monitor.summary()
        return ChoiceStability(
            mean_entropy=_told(metrics.mean_entropy),
            mean_coherence=_told(metrics.mean_coherence),
            mean_kuramoto_order=_told(metrics.mean_kuramoto_order),
            lyapunov_estimate=_told(metrics.lyapunov_estimate),
            is_stable=metrics.is_stable,
        )


def _told(figure: float) -> float | None:
    """What was not reported travels as nothing, not as NaN."""
    return None if math.isnan(figure) else figure
