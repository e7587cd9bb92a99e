"""Weights per row, from the states themselves, optionally for the best k shards only.

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
from braid_fusion.whole_number import whole_number

MAX_HIDDEN = 2**16


@register_strategy("router")
class RouterFusion(FusionStrategy):
    """fused = Σ_s w_s(x) · x_s, with w from a small network over all shards' states; nearly uniform at first.

    ``top_k`` keeps the k largest weights of each row, normalised among themselves. With k = 1 that would be
    the constant 1 and the router would never learn, so the chosen state is scaled by its probability among
    all, as in the Switch Transformer (arXiv 2101.03961, eq. 2).
    """

    def __init__(
        self,
        num_models: int,
        hidden_dim: int,
        top_k: int | None = None,
        hidden: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if top_k is not None:
            whole_number("router: top_k, of the shards", top_k, 1, num_models)
        if hidden is not None:
            whole_number("router: hidden", hidden, 1, MAX_HIDDEN)
        self.top_k = None if top_k == num_models else top_k
        hidden = hidden or min(256, hidden_dim)
        self.hidden = linear(num_models * hidden_dim, hidden, generator)
        self.score = linear(hidden, num_models, generator, gain=0.1)

    def route(self, states_TF: Sequence[Tensor]) -> Tensor:
        """(T, S): the weight of each shard in each row."""
        scores_TS: Tensor = self.score(functional.gelu(self.hidden(torch.cat(list(states_TF), dim=-1))))
        if self.top_k is None:
            return scores_TS.softmax(-1)
        kept = scores_TS.topk(self.top_k, dim=-1).indices
        dropped_TS = torch.ones_like(scores_TS, dtype=torch.bool).scatter_(-1, kept, False)
        if self.top_k == 1:
            return scores_TS.softmax(-1).masked_fill(dropped_TS, 0.0)
        return scores_TS.masked_fill(dropped_TS, -torch.inf).softmax(-1)

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
        """Returns one (T, F) for all receivers."""
        weights_TS = self.route(states_TF)
        columns = weights_TS.unsqueeze(-1).unbind(-2)
        fused_TF = columns[0] * states_TF[0]
        for column_T1, state_TF in zip(columns[1:], states_TF[1:], strict=True):
            fused_TF = torch.addcmul(fused_TF, column_T1, state_TF)
        return Fused(fused_TF, weights_TS if context.want_metrics else None)
