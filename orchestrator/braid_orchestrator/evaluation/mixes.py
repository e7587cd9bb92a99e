"""Mixing shards at their outputs: pure functions of what each shard gives each token.

None of them knows a model. They take natural log-probabilities of the tokens that came, ``own_TS``, and give the
logarithms of weights that sum to one, for each row or for all, to mix probabilities with.

Shapes: T packed rows, S shards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from braid_rpc.errors import InvalidRequestError

_MAX_EM_STEPS = 1000
_EM_GAIN = 1e-6


def uniform_log_weights(num_rows: int, num_shards: int) -> Tensor:
    """(T, S): every shard counts the same."""
    return torch.full((num_rows, num_shards), -math.log(num_shards))


def posterior_log_weights(own_TS: Tensor, lengths: Sequence[int], forgetting: float = 1.0) -> Tensor:
    """(T, S): each shard counts as much as what it has said so far turned out right. With an even prior these are
    Bayes' posterior probabilities of the shards, given the tokens of the sequence before.

    Args:
        own_TS: of the token behind each row, sequences of ``lengths`` one after the other.
        forgetting: what is left of the evidence with each token, in (0, 1]; 1: all. Below, a shard that was right
            long ago doesn't count for ever.

    Raises: InvalidRequestError for another number.
    """
    check_forgetting(forgetting)
    num_shards = own_TS.shape[1]
    evidence = [torch.zeros(0, num_shards, dtype=own_TS.dtype)]
    for own_LS in torch.split(own_TS, list(lengths)):
        before_LS = torch.zeros_like(own_LS)
        if forgetting == 1.0:
            before_LS[1:] = own_LS[:-1].cumsum(0)
        else:
            for row in range(1, own_LS.shape[0]):
                before_LS[row] = forgetting * before_LS[row - 1] + own_LS[row - 1]
        evidence.append(before_LS)
    return torch.cat(evidence).log_softmax(-1)


def global_log_weights(own_TS: Tensor) -> Tensor:
    """(S,) float64: the weights, the same for all tokens, whose mix gives these tokens most.

    By expectation maximisation from even weights (Dempster, Laird and Rubin, 1977): the loss has one minimum, and no
    step goes uphill. Ends when a step gains less than a millionth of a nat per token, or after a thousand.
    """
    own_TS = own_TS.double()
    num_tokens, num_shards = own_TS.shape
    log_weights_S = torch.full((num_shards,), -math.log(num_shards), dtype=torch.float64)
    before = -math.inf
    for _ in range(_MAX_EM_STEPS):
        joint_TS = own_TS + log_weights_S
        logprob_T = joint_TS.logsumexp(-1)
        mean = float(logprob_T.mean())
        if not mean - before > _EM_GAIN:
            break
        before = mean
        log_weights_S = (joint_TS - logprob_T[:, None]).logsumexp(0) - math.log(num_tokens)
    return log_weights_S


def check_forgetting(forgetting: float) -> None:
    """Raises: InvalidRequestError for what is not in (0, 1]."""
    if not 0.0 < forgetting <= 1.0:
        raise InvalidRequestError(f"forgetting: got {forgetting}, expected more than 0 and at most 1")


def oracle_logprobs(own_TS: Tensor) -> Tensor:
    """(T,): of each token, what the shard that gives it most gives it. A bound on choosing one shard per token with
    knowledge of what comes; no model, and not a distribution."""
    return own_TS.amax(-1)
