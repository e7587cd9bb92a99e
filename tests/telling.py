"""A strategy that tells something of each row, under the names that resonance layers use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from braid_fusion import FusionContext, FusionStrategy, register_strategy
from braid_fusion.strategies.base import Fused
from braid_orchestrator.config.values import PointConfig


@register_strategy("told")
class Told(FusionStrategy):
    """A mean that tells something of each row; ``order`` only where it is to."""

    def __init__(self, num_models: int, hidden_dim: int, order: bool = False) -> None:
        super().__init__()
        self.order = order

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
        mean_TF = torch.stack(list(states_TF)).mean(0)
        metrics = {"gate_coherence": mean_TF.mean(-1).sigmoid(), "gate": mean_TF.amax(-1)}
        if self.order:
            metrics["kuramoto_order"] = mean_TF.std(-1)
        return Fused(mean_TF, row_metrics=metrics if context.want_metrics else {})


POINTS = (
    PointConfig(at=1, strategy="told"),
    PointConfig(at=2, strategy="told", options={"order": True}),
)
