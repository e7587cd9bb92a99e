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

_BARRIERS = (1e-2, 1e-4, 1e-6, 1e-8)
_MAX_NEWTON_STEPS, _MAX_HALVINGS = 50, 40
_ENOUGH = 1e-2  # of the barrier: a step that gains less would not show in what the barrier itself costs


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

    To a millionth of a nat per token: by Newton's method under a logarithmic barrier that keeps weights above zero
    (Boyd and Vandenberghe, Convex Optimization, section 11.3). The loss is convex, so this is the least that there
    is, however alike the shards are.
    """
    own_TS = own_TS.double()
    own_TS = own_TS[own_TS.isfinite().any(-1)]  # nobody's weight helps a token that all think impossible
    num_shards = own_TS.shape[1]
    weights_S = torch.full((num_shards,), 1.0 / num_shards, dtype=torch.float64)
    if own_TS.shape[0] == 0:
        return weights_S.log()
    # Relative to the best shard at each token, which moves the loss and not its minimum.
    share_TS = (own_TS - own_TS.amax(-1, keepdim=True)).exp()
    for barrier in _BARRIERS:
        for _ in range(_MAX_NEWTON_STEPS):
            step_S, decrease = _newton_step(share_TS, weights_S, barrier)
            if decrease <= _ENOUGH * barrier:
                break
            weights_S = _downhill(share_TS, weights_S, barrier, step_S, decrease)
    return weights_S.log() - weights_S.sum().log()


def _barrier_loss(share_TS: Tensor, weights_S: Tensor, barrier: float) -> float:
    return -float((share_TS @ weights_S).log().mean() + barrier * weights_S.log().sum())


def _newton_step(share_TS: Tensor, weights_S: Tensor, barrier: float) -> tuple[Tensor, float]:
    """Where the loss's second-order model is least among weights of the same sum, and how much less it is there,
    twice."""
    num_shards = weights_S.shape[0]
    ratio_TS = share_TS / (share_TS @ weights_S)[:, None]
    gradient_S = -ratio_TS.mean(0) - barrier / weights_S
    system = torch.zeros(num_shards + 1, num_shards + 1, dtype=torch.float64)
    # In units of the weights, or a weight near zero would make the system singular.
    scaled_TS = ratio_TS * weights_S
    system[:-1, :-1] = scaled_TS.T @ scaled_TS / ratio_TS.shape[0] + barrier * torch.eye(num_shards).double()
    system[:-1, -1] = system[-1, :-1] = weights_S
    right_hand = torch.cat((-gradient_S * weights_S, torch.zeros(1, dtype=torch.float64)))
    step_S = weights_S * torch.linalg.solve(system, right_hand)[:-1]
    return step_S, -float(gradient_S @ step_S)


def _downhill(share_TS: Tensor, weights_S: Tensor, barrier: float, step_S: Tensor, decrease: float) -> Tensor:
    """As far along the step as weights stay above zero and the loss falls."""
    shrinking_S = (-step_S / weights_S).amax()
    length = min(1.0, 0.99 / float(shrinking_S)) if float(shrinking_S) > 0.0 else 1.0
    before = _barrier_loss(share_TS, weights_S, barrier)
    for _ in range(_MAX_HALVINGS):
        there_S = weights_S + length * step_S
        if _barrier_loss(share_TS, there_S, barrier) <= before - 0.1 * length * decrease:
            return there_S
        length /= 2
    return weights_S


def check_forgetting(forgetting: float) -> None:
    """Raises: InvalidRequestError for what is not in (0, 1]."""
    if not 0.0 < forgetting <= 1.0:
        raise InvalidRequestError(f"forgetting: got {forgetting}, expected more than 0 and at most 1")


def oracle_logprobs(own_TS: Tensor) -> Tensor:
    """(T,): of each token, what the shard that gives it most gives it. A bound on choosing one shard per token with
    knowledge of what comes; no model, and not a distribution."""
    return own_TS.amax(-1)
