"""Weights without training: from the text so far and nothing after it, or from hindsight."""

from __future__ import annotations

import pytest
import torch

from braid_orchestrator.bench.worth.ensembles import oracle, posterior_mix, uniform_mix

LOGPROBS_NLS = -torch.rand(3, 7, 2, generator=torch.Generator().manual_seed(0)) * 4


def test_without_forgetting_the_posterior_is_bayes_rule_for_a_whole_text() -> None:
    """The chain rule gives the mean of both models' probabilities of the text."""
    whole_N = posterior_mix(LOGPROBS_NLS, 1.0).sum(-1)
    torch.testing.assert_close(whole_N, uniform_mix(LOGPROBS_NLS.sum(1, keepdim=True))[:, 0])


def test_with_all_forgotten_only_the_last_token_counts() -> None:
    mixed_NL = posterior_mix(LOGPROBS_NLS, 0.0)
    weights_NS = LOGPROBS_NLS[:, 3].softmax(-1)
    torch.testing.assert_close(mixed_NL[:, 4].exp(), (weights_NS * LOGPROBS_NLS[:, 4].exp()).sum(-1))
    torch.testing.assert_close(mixed_NL[:, 0], uniform_mix(LOGPROBS_NLS[:, :1])[:, 0])


@pytest.mark.parametrize("forgetting", [0.0, 0.8, 1.0])
def test_later_text_changes_no_earlier_weight(forgetting: float) -> None:
    changed_NLS = LOGPROBS_NLS.clone()
    changed_NLS[:, 5:] -= 3.0
    before, after = posterior_mix(LOGPROBS_NLS, forgetting), posterior_mix(changed_NLS, forgetting)
    assert torch.equal(before[:, :5], after[:, :5])


def test_nobody_chooses_better_than_the_oracle() -> None:
    bound = oracle(LOGPROBS_NLS)
    assert (bound >= uniform_mix(LOGPROBS_NLS)).all()
    assert torch.equal(bound, torch.maximum(LOGPROBS_NLS[..., 0], LOGPROBS_NLS[..., 1]))
