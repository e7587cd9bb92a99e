"""The same learned weights for all rows: a softmax over the shards.

Letters: T packed rows, S shards, F fusion width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from braid_fusion.context import FusionContext
from braid_fusion.strategies.base import Fused, FusionStrategy
from braid_fusion.strategies.registry import register_strategy


@register_strategy("weighted", "learned_weighted")
class WeightedFusion(FusionStrategy):
    """fused = Σ_s softmax(w)_s · x_s, uniform at first (the braiding guide's "learned weighted fusion")."""

    def __init__(self, num_models: int, hidden_dim: int = 0) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_models))

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
        """Returns one (T, F) for all receivers."""
        weights_S = self.weights.softmax(0)
        fused_TF = weights_S[0] * states_TF[0]
        for shard in range(1, len(states_TF)):
            fused_TF = torch.addcmul(fused_TF, weights_S[shard], states_TF[shard])
        if not context.want_metrics:
            return Fused(fused_TF)
        return Fused(fused_TF, weights_S.expand(fused_TF.shape[0], -1))
