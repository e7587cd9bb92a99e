"""Several shards' logits into one distribution, and what a readout may know of each.

Engine and training both use these functions.

Letters: R logit rows, S shards, V vocabulary, N features per shard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from braid_fusion.errors import FusionShapeError

NUM_LOGIT_FEATURES = 3


def log_probabilities(logits_RV: Tensor) -> Tensor:
    """(R, V) natural log-probabilities, at least in float32."""
    dtype = torch.promote_types(logits_RV.dtype, torch.float32)
    return logits_RV.log_softmax(-1, dtype=dtype)


def logit_features(logits_RV: Sequence[Tensor], *, normalised: bool = False) -> Tensor:
    """(R, S, N) of each shard's certainty: its entropy, and minus the logarithms of its largest probability
    and of its collision probability Σp². All are divided by log V: 0 is certain, 1 uniform.

    Args:
        logits_RV: one (R, V) per shard.
        normalised: they are log-probabilities already.
    """
    features = []
    for shard_RV in logits_RV:
        log_p_RV = shard_RV if normalised else log_probabilities(shard_RV)
        p_RV = log_p_RV.exp()
        scale = 1.0 / math.log(max(2, log_p_RV.shape[-1]))
        # A token ruled out (log p = -inf) adds nothing to the entropy.
        entropy_R = -torch.linalg.vecdot(p_RV, log_p_RV.clamp_min(-1e4))
        top_R = -log_p_RV.amax(-1)
        collision_R = -torch.linalg.vecdot(p_RV, p_RV).log()
        features.append(torch.stack([entropy_R, top_R, collision_R], dim=-1) * scale)
    return torch.stack(features, dim=1)


def mix_logits(logits_RV: Sequence[Tensor], log_weights_RS: Tensor, *, normalised: bool = False) -> Tensor:
    """Mix probabilities, not logits: log Σ_s w_s · softmax(logits_s), stable and differentiable.

    Args:
        logits_RV: one (R, V) per shard; the ids must mean the same tokens in all. Where one head is padded to
            more rows than another, only the ids that all have are mixed.
        log_weights_RS: logarithms of weights that sum to one in each row; minus infinity leaves a shard out.
        normalised: the logits are log-probabilities already.

    Returns: (R, V) log-probabilities.
    Raises: FusionShapeError if the weights fit neither the rows nor the shards.
    """
    num_rows, num_shards = logits_RV[0].shape[0], len(logits_RV)
    if log_weights_RS.shape != (num_rows, num_shards) or any(
        shard.shape[0] != num_rows for shard in logits_RV
    ):
        raise FusionShapeError(
            f"mix_logits: got weights {tuple(log_weights_RS.shape)} for logits "
            f"{[tuple(shard.shape) for shard in logits_RV]}, expected weights ({num_rows}, {num_shards})"
        )
    vocabulary = min(shard.shape[-1] for shard in logits_RV)
    mixed_RV: Tensor | None = None
    for shard, shard_RV in enumerate(logits_RV):
        own_RV = shard_RV
        if shard_RV.shape[-1] != vocabulary or not normalised:
            own_RV = log_probabilities(shard_RV[:, :vocabulary])
        weighted_RV = own_RV + log_weights_RS[:, shard, None]
        mixed_RV = weighted_RV if mixed_RV is None else _log_add(mixed_RV, weighted_RV)
    if mixed_RV is None:
        raise FusionShapeError("mix_logits: got no logits, expected one (R, V) per shard")
    return mixed_RV


def _log_add(left: Tensor, right: Tensor) -> Tensor:
    """logaddexp whose gradient is finite where both sides are minus infinity."""
    floor = torch.finfo(left.dtype).min
    return torch.logaddexp(left.clamp_min(floor), right.clamp_min(floor))
