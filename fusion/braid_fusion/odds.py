"""Several shards' logits over one vocabulary into one distribution, for serving: no gradients, few passes.

The numbers of `mixing.logit_features` and `mixing.mix_logits`, up to rounding, from one exponential per logit
and one logarithm per token. A few rows at a time, so that what one pass writes the next one finds in the cache.

Letters: R logit rows, S shards, V vocabulary, N features per shard.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_fusion.mixing import mix_logits

# Numbers of one shard that are looked at together: a row of a large vocabulary, several of a small one.
_BLOCK = 2**16
# Below this, float32 has no digits left to lose; mixing goes by logarithms then.
_SMALLEST_PROBABILITY = 1e-35
# A token ruled out (a logit of minus infinity) has odds of zero, and adds nothing to the entropy.
_LOWEST = -1e4


@dataclass(frozen=True, slots=True)
class Odds:
    """One shard's next tokens: ``odds_RV`` relative to each row's most probable token, their sums ``total_R1``,
    the logits' log-sum-exp ``scale_R1``, and ``features_RN`` as `mixing.logit_features` has them."""

    logits_RV: Tensor  # noqa: N815 - shape letters
    odds_RV: Tensor  # noqa: N815 - shape letters
    total_R1: Tensor  # noqa: N815 - shape letters
    scale_R1: Tensor  # noqa: N815 - shape letters
    features_RN: Tensor  # noqa: N815 - shape letters


def measure(logits_RV: Tensor) -> Odds:
    """Args: logits_RV: any float dtype, not changed, and needed until they are mixed."""
    num_rows, vocabulary = logits_RV.shape
    odds_RV = torch.empty(
        num_rows,
        vocabulary,
        dtype=torch.promote_types(logits_RV.dtype, torch.float32),
        device=logits_RV.device,
    )
    highest, totals, entropies, squares = [], [], [], []
    for block in _blocks(num_rows, vocabulary):
        own_RV = logits_RV[block].to(odds_RV.dtype)
        highest_R1 = own_RV.amax(-1, keepdim=True)
        distance_RV = (own_RV - highest_R1).clamp_min_(_LOWEST)
        block_RV = torch.exp(distance_RV, out=odds_RV[block])
        highest.append(highest_R1)
        totals.append(block_RV.sum(-1, keepdim=True))
        entropies.append(torch.linalg.vecdot(block_RV, distance_RV))
        squares.append(torch.linalg.vecdot(block_RV, block_RV))
    total_R1 = _joined(totals)
    total_R, log_total_R = total_R1[:, 0], total_R1[:, 0].log()
    features_RN = torch.stack(
        (
            log_total_R - _joined(entropies) / total_R,  # entropy
            log_total_R,  # of the most probable token, whose odds are one
            2 * log_total_R - _joined(squares).log(),  # collision
        ),
        dim=-1,
    ) / math.log(max(2, vocabulary))
    return Odds(logits_RV, odds_RV, total_R1, _joined(highest) + log_total_R[:, None], features_RN)


def mix(shards: Sequence[Odds], log_weights_RS: Tensor) -> Tensor:
    """log Σ_s w_s · softmax(logits_s), on the scale of the shards' own logits: (R, V).

    The first shard's ``odds_RV`` become the result. All have the same rows and vocabulary.
    """
    weights_RS = log_weights_RS.exp()
    factors = [
        weights_R[:, None] / shard.total_R1
        for weights_R, shard in zip(weights_RS.unbind(-1), shards, strict=True)
    ]
    scale_R1 = sum(
        (
            weights_R[:, None] * shard.scale_R1
            for weights_R, shard in zip(weights_RS.unbind(-1), shards, strict=True)
        ),
        torch.zeros_like(shards[0].scale_R1),
    )
    mixed_RV = shards[0].odds_RV
    for block in _blocks(*mixed_RV.shape):
        block_RV = mixed_RV[block].mul_(factors[0][block])
        for shard, factor_R1 in zip(shards[1:], factors[1:], strict=True):
            block_RV.addcmul_(shard.odds_RV[block], factor_R1[block])
        if float(block_RV.min()) < _SMALLEST_PROBABILITY:
            return mix_logits([shard.logits_RV for shard in shards], log_weights_RS).add_(scale_R1)
        block_RV.log_().add_(scale_R1[block])
    return mixed_RV


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _blocks(num_rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, _BLOCK // max(1, vocabulary))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)
