"""A gated bottleneck over the receiver's and all givers' states, one per receiver.

Letters: T packed rows, S shards, F fusion width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from braid_fusion.context import FusionContext
from braid_fusion.initialisation import linear
from braid_fusion.strategies.base import Fused, FusionStrategy
from braid_fusion.strategies.registry import register_strategy


@register_strategy("mlp")
class MlpFusion(FusionStrategy):
    """fused_r = silu(G_r x) ⊙ V_r x with x = [x_0; …; x_{S-1}], for each receiver r.

    The bottleneck is the fusion width itself, so the output map that follows is its second layer. All
    receivers' gates and values come out of one product.
    """

    def __init__(
        self,
        num_models: int,
        hidden_dim: int,
        receivers: Sequence[int] | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_receivers = num_models if receivers is None else len(receivers)
        self.hidden_dim = hidden_dim
        self.gates_and_values = linear(
            num_models * hidden_dim, 2 * self.num_receivers * hidden_dim, generator
        )

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
        """Returns one (T, F) per receiver."""
        both = self.gates_and_values(torch.cat(list(states_TF), dim=-1))
        gates, values = both.chunk(2, dim=-1)
        return Fused((functional.silu(gates) * values).split(self.hidden_dim, dim=-1))
