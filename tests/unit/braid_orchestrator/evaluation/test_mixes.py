"""Mixes that need no training, against what Bayes says by hand."""

from __future__ import annotations

import math

import pytest
import torch

from braid_orchestrator.evaluation.mixes import (
    global_log_weights,
    oracle_logprobs,
    posterior_log_weights,
    uniform_log_weights,
)
from braid_rpc.errors import InvalidRequestError

LENGTHS = (4, 1, 3)


def own_logprobs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(sum(LENGTHS), 3, generator=generator, dtype=torch.float64).log()


def test_uniform_weights_are_even() -> None:
    assert torch.allclose(uniform_log_weights(2, 3).exp(), torch.full((2, 3), 1 / 3))


def test_posterior_weights_are_bayes_rule_over_each_sequence() -> None:
    own = own_logprobs()
    weights = posterior_log_weights(own, LENGTHS).exp()
    row = 0
    for length in LENGTHS:
        likelihood = torch.ones(3, dtype=torch.float64)
        for at in range(row, row + length):
            torch.testing.assert_close(weights[at], likelihood / likelihood.sum())
            likelihood = likelihood * own[at].exp()
        row += length


def test_the_posterior_mix_of_a_sequence_is_the_mean_of_its_likelihoods() -> None:
    own = own_logprobs()[:4]
    mixed = (posterior_log_weights(own, (4,)) + own).logsumexp(-1).sum()
    assert float(mixed) == pytest.approx(float(own.sum(0).logsumexp(0)) - math.log(3))


def test_forgetting_fades_what_was_long_ago() -> None:
    own = own_logprobs()[:4]
    weights = posterior_log_weights(own, (4,), 0.5)
    evidence = 0.25 * own[0] + 0.5 * own[1] + own[2]
    torch.testing.assert_close(weights[3], evidence.log_softmax(-1))
    torch.testing.assert_close(
        posterior_log_weights(own, (4,), 1.0 - 1e-12), posterior_log_weights(own, (4,))
    )
    for wrong in (0.0, 1.5, math.nan):
        with pytest.raises(InvalidRequestError, match="forgetting: got"):
            posterior_log_weights(own, (4,), wrong)


def test_global_weights_are_the_best_that_there_are() -> None:
    own = own_logprobs()[:, :2]
    weights = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1]
    every = torch.stack([weights, 1 - weights], dim=1).log()
    losses = -(every[:, None] + own).logsumexp(-1).mean(-1)
    found = global_log_weights(own)
    assert float(found.exp().sum()) == pytest.approx(1.0)
    assert float(-(found + own).logsumexp(-1).mean()) == pytest.approx(float(losses.min()), abs=1e-5)
    assert float(found.exp()[0]) == pytest.approx(float(weights[losses.argmin()]), abs=0.01)


@pytest.mark.parametrize("noise", [1e-3, 0.05, 0.2, 3.0])
@pytest.mark.parametrize("num_shards", [2, 5])
def test_no_other_global_weights_are_better_however_alike_shards_are(noise: float, num_shards: int) -> None:
    """The loss is convex: at its least, moving a little weight to any shard gains nothing."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(3000, 50, generator=generator, dtype=torch.float64) * 2
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    own = torch.stack(
        [
            (logits + index * noise * torch.randn(logits.shape, generator=generator, dtype=torch.float64))
            .log_softmax(-1)
            .gather(1, targets)[:, 0]
            for index in range(num_shards)
        ],
        dim=1,
    )
    found = global_log_weights(own)
    assert float(found.exp().sum()) == pytest.approx(1.0)
    mix = (own + found).logsumexp(-1)
    gains = (own - mix[:, None]).exp().mean(0)
    # By convexity nothing is better by more than this.
    assert float(gains.amax()) - 1.0 <= 1e-6
    assert float(-mix.mean()) <= float(-own.mean(0).amax()) + 1e-6


def test_tokens_that_nobody_thinks_possible_decide_nothing() -> None:
    own = own_logprobs()
    more = torch.cat((own, torch.full((5, 3), -math.inf, dtype=torch.float64)))
    torch.testing.assert_close(global_log_weights(more), global_log_weights(own))
    torch.testing.assert_close(
        global_log_weights(more[-5:]).exp(), torch.full((3,), 1 / 3, dtype=torch.float64)
    )
    impossible = own.clone()
    impossible[2, 0] = -math.inf
    assert bool(global_log_weights(impossible).isfinite().all())


def test_of_a_shard_that_is_always_better_the_others_take_nothing() -> None:
    own = torch.tensor([[-2.0, -6.0]]).expand(50, -1)
    assert float(global_log_weights(own).exp()[0]) > 0.9999


def test_the_oracle_is_at_least_as_good_as_anyone() -> None:
    own = own_logprobs()
    assert bool((oracle_logprobs(own)[:, None] >= own).all())
