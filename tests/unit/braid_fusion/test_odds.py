"""Mixing odds gives what mixing log-probabilities gives, whatever the rows, and in whichever blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from braid_fusion import odds
from braid_fusion.mixing import log_probabilities, logit_features, mix_logits

# Exponentials and logarithms of float32, a few roundings apart.
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def _logits(num_rows: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [(3 * torch.randn(num_rows, vocabulary, generator=generator) + 5).to(dtype) for _ in range(3)]


def _log_weights(num_rows: int, num_shards: int = 3) -> Tensor:
    return torch.randn(num_rows, num_shards, generator=torch.Generator().manual_seed(4)).log_softmax(-1)


def _expected(logits: list[Tensor], log_weights_RS: Tensor) -> Tensor:
    own = [log_probabilities(shard_RV) for shard_RV in logits]
    scales = torch.stack([shard_RV.float().logsumexp(-1) for shard_RV in logits], dim=-1)
    scale_R1 = (scales * log_weights_RS.exp()).sum(-1, keepdim=True)
    return mix_logits(own, log_weights_RS, normalised=True) + scale_R1


@pytest.mark.parametrize(("num_rows", "vocabulary"), [(1, 1), (1, 7), (5, 7), (3, 50_257), (5, 30_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_and_mixture_are_those_of_log_probabilities(
    num_rows: int, vocabulary: int, dtype: torch.dtype
) -> None:
    logits = _logits(num_rows, vocabulary, dtype)
    before = [shard_RV.clone() for shard_RV in logits]
    measured = [odds.measure(shard_RV) for shard_RV in logits]
    features = torch.stack([shard.features_RN for shard in measured], dim=1)
    torch.testing.assert_close(features, logit_features(logits), **TOLERANCE)
    log_weights_RS = _log_weights(num_rows)
    torch.testing.assert_close(
        odds.mix(measured, log_weights_RS), _expected(logits, log_weights_RS), **TOLERANCE
    )
    assert all(torch.equal(now, then) for now, then in zip(logits, before, strict=True))


def test_weights_of_minus_infinity_leave_a_shard_out() -> None:
    logits = _logits(2, 11)
    log_weights_RS = torch.tensor([[0.0, -torch.inf, -torch.inf], [-torch.inf, 0.0, -torch.inf]])
    mixed_RV = odds.mix([odds.measure(shard_RV) for shard_RV in logits], log_weights_RS)
    torch.testing.assert_close(mixed_RV, torch.stack([logits[0][0], logits[1][1]]), **TOLERANCE)


@pytest.mark.parametrize("low", [-torch.inf, -200.0])
@pytest.mark.parametrize("row", [0, 2])
def test_tokens_too_improbable_for_probabilities_go_by_logarithms(low: float, row: int) -> None:
    logits = _logits(3, 40_000)  # a row of them is a block
    for shard_RV in logits:
        shard_RV[row, 1] = low
    measured = [odds.measure(shard_RV) for shard_RV in logits]
    features = torch.stack([shard.features_RN for shard in measured], dim=1)
    torch.testing.assert_close(features, logit_features(logits), **TOLERANCE)
    log_weights_RS = _log_weights(3)
    mixed_RV, expected_RV = odds.mix(measured, log_weights_RS), _expected(logits, log_weights_RS)
    torch.testing.assert_close(mixed_RV.clamp_min(-1e4), expected_RV.clamp_min(-1e4), **TOLERANCE)
