"""A gate per token that also knows how well each model has predicted the text so far.

Of all that mixes outputs it knows the most: what a gate knows, and what Bayes' rule goes by. A baseline for braids;
no service has it, since a prompt would need the logits of all its tokens.

Letters: B windows, L tokens predicted in each, T = B · L packed positions, S models, V vocabulary, K decays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from braid_fusion.initialisation import zero_linear
from braid_fusion.mixing import log_probabilities, logit_features
from braid_fusion.readout import GateReadout
from braid_services.shard.backend import ShardBackend

DECAYS = (0.0, 0.5, 0.8, 0.95)


class HistoryGate(nn.Module):
    """log w = gate(states, certainty) + Σ_k c_k · evidence_k, normalised, over models that stay as they are.

    evidence_k sums the log-probabilities that a model gave to the window's tokens so far, older ones with weight
    DECAYS[k] per token of age. With the gate at zero and one c at one this is the posterior with forgetting.
    """

    def __init__(self, backends: Sequence[ShardBackend], hidden: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.gate = GateReadout([backend.card.width for backend in backends], hidden, generator)
        self.evidence = zero_linear(len(DECAYS), 1, bias=False)
        self._backends = tuple(backends)

    def forward(self, token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
        """(T,) natural log-probabilities of the targets, in windows of equal ``lengths``."""
        states, features, own = [], [], []
        for backend in self._backends:
            hidden_TD, logits_TV = backend.forward(token_ids_T, lengths).finish()
            log_p_TV = log_probabilities(logits_TV)
            states.append(hidden_TD)
            features.append(logit_features([log_p_TV], normalised=True))
            own.append(log_p_TV.gather(1, targets_T[:, None]))
        own_TS = torch.cat(own, dim=1)
        log_weights_TS: Tensor = self.gate(states, torch.cat(features, dim=1))
        evidence_TSK = evidence(own_TS.view(len(lengths), -1, own_TS.shape[1])).flatten(0, 1)
        log_weights_TS = (log_weights_TS + self.evidence(evidence_TSK).squeeze(-1)).log_softmax(-1)
        return (log_weights_TS + own_TS).logsumexp(-1)


def evidence(logprobs_BLS: Tensor) -> Tensor:
    """(B, L, S, K): Σ_{j<t} γ^(t−1−j) · logprob_j for each decay γ; nothing of a position's own target."""
    length = logprobs_BLS.shape[1]
    age_LL = torch.arange(length)[:, None] - torch.arange(length) - 1
    kernels_KLL = torch.stack(
        [torch.where(age_LL >= 0, decay ** age_LL.clamp_min(0).double(), 0.0) for decay in DECAYS]
    ).to(logprobs_BLS.dtype)
    return torch.einsum("kij,bjs->bisk", kernels_KLL, logprobs_BLS)
