"""A braid, or a gate per token alone, whose weights also follow how well each shard has predicted the text so far.

Of all that mixes outputs it knows the most: what a gate knows, and what Bayes' rule goes by. A baseline for braids;
no service has it, since a prompt would need the logits of all its tokens.

Shapes: T packed rows, L rows of a window, S shards, K decays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from braid_fusion.initialisation import zero_linear
from braid_fusion.stack import FusionStack
from braid_orchestrator.training.braid_pass import run_to_ends
from braid_orchestrator.training.ports import TrainingShard

DECAYS = (0.0, 0.5, 0.8, 0.95)


class HistoryGate(nn.Module):
    """log w = gate(states, certainty) + Σ_k c_k · evidence_k, normalised, over shards that stay as they are.

    evidence_k sums the log-probabilities that a shard gave to the window's tokens so far, older ones with weight
    DECAYS[k] per token of age. With the gate at zero and one c at one this is the posterior with forgetting.

    Args:
        shards: one per shard of the stack's plan, in its order.
        stack: with the readout ``gate``; trained in place.
    """

    def __init__(self, shards: Sequence[TrainingShard], stack: FusionStack) -> None:
        super().__init__()
        self.stack = stack
        self.evidence = zero_linear(len(DECAYS), 1, bias=False)
        self._shards = tuple(shards)

    def forward(self, token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
        """(T,) natural log-probabilities of the targets, each behind its row of packed windows."""
        ends = run_to_ends(self._shards, self.stack, token_ids_T, lengths, targets_T)
        own_TS = ends.target_logprobs_RA
        log_weights_TS = self.stack.read_out(ends.hidden, ends.features)
        log_weights_TS = log_weights_TS + self.evidence(evidence(own_TS, lengths)).squeeze(-1)
        return ends.mix(log_weights_TS.log_softmax(-1)).target_logprobs


def evidence(own_TS: Tensor, lengths: Sequence[int]) -> Tensor:
    """(T, S, K): Σ_{j<t} γ^(t−1−j) · own_j for each decay γ, within each window; nothing of a row's own target."""
    parts = [
        torch.einsum("kij,js->isk", _kernels(own_LS.shape[0]).to(own_LS.dtype), own_LS)
        for own_LS in torch.split(own_TS, list(lengths))
    ]
    return torch.cat(parts)


@lru_cache(maxsize=2)
def _kernels(length: int) -> Tensor:
    """(K, L, L) float64: what the token behind row j counts for row i."""
    age_LL = torch.arange(length)[:, None] - torch.arange(length) - 1
    return torch.stack(
        [torch.where(age_LL >= 0, decay ** age_LL.clamp_min(0).double(), 0.0) for decay in DECAYS]
    )
