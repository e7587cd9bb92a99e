"""What several models' predictions of a text give together without training: weights from the text so far, or
from hindsight.

Letters: N windows, L tokens predicted in each, S models.
"""

from __future__ import annotations

import torch
from torch import Tensor


def posterior_mix(logprobs_NLS: Tensor, forgetting: float) -> Tensor:
    """(N, L) log-probabilities under weights that follow how well each model predicted the window so far.

    w_{t+1} ∝ w_t^γ · p(x_t), with the forgetting γ: 1 is Bayes' rule for a text of one kind, 0 hears only the last
    token. Each window begins with equal weights.
    """
    evidence_NS = torch.zeros_like(logprobs_NLS[:, 0])
    mixed = []
    for logprobs_NS in logprobs_NLS.unbind(1):
        mixed.append((evidence_NS.log_softmax(-1) + logprobs_NS).logsumexp(-1))
        evidence_NS = forgetting * evidence_NS + logprobs_NS
    return torch.stack(mixed, dim=1)


def uniform_mix(logprobs_NLS: Tensor) -> Tensor:
    """(N, L): all models weigh the same at every token."""
    weights_S = torch.zeros(logprobs_NLS.shape[-1]).log_softmax(0)
    return (logprobs_NLS + weights_S).logsumexp(-1)


def oracle(logprobs_NLS: Tensor) -> Tensor:
    """(N, L): at every token the model that predicts it best. A bound for choosing, as nobody can know which."""
    return logprobs_NLS.amax(-1)
