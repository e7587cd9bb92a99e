"""Sampling options do what they say, and nothing outside a choice changes what it draws."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from braid_orchestrator.engine.requests import SamplingOptions
from braid_orchestrator.engine.sampling import Sampler
from braid_rpc.errors import InvalidRequestError

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03]))


def draws(count: int = 400, prompt: tuple[int, ...] = (), index: int = 0, **options: object) -> list[int]:
    sampler = Sampler(SamplingOptions(seed=1, **options), prompt, (), index)  # type: ignore[arg-type]
    return [sampler.pick(LOGITS).token_id for _ in range(count)]


def test_temperature_zero_is_greedy() -> None:
    assert set(draws(temperature=0.0)) == {0}


def test_another_temperature_draws_otherwise_and_takes_as_many_draws() -> None:
    """Whatever the temperature of a token, the next one is drawn with the same number: a replay counts on it."""
    following = []
    for temperature in (None, 0.01, 1e-9, 0.8):
        sampler = Sampler(SamplingOptions(seed=4, temperature=0.8), (), ())
        first = [sampler.pick(LOGITS, temperature).token_id for _ in range(20)]
        following.append([sampler.pick(LOGITS).token_id for _ in range(20)])
        assert (set(first) == {0}) == (temperature in (0.01, 1e-9))
    assert following == [following[0]] * 4 and len(set(following[0])) > 1
    greedy = Sampler(SamplingOptions(seed=4, temperature=0.0), (), ())
    assert {greedy.pick(LOGITS, 5.0).token_id for _ in range(20)} == {0}


def test_frequencies_follow_the_distribution() -> None:
    counts = Counter(draws(4000))
    for token_id, probability in enumerate([0.5, 0.25, 0.15, 0.07, 0.03]):
        assert abs(counts[token_id] / 4000 - probability) < 0.03


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.74}, {0, 1}),
        ({"top_p": 0.76}, {0, 1, 2}),
        ({"min_p": 0.2}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.5}, {0}),
        ({"logit_bias": {4: 50.0}}, {4}),
        ({"logit_bias": {0: -100.0}}, {1, 2, 3, 4}),
    ],
)
def test_options_leave_only_what_they_allow(options: dict[str, object], expected: set[int]) -> None:
    assert set(draws(**options)) == expected


def test_the_same_seed_draws_the_same_and_choices_differ() -> None:
    assert draws() == draws()
    assert draws() != draws(index=1)


def test_another_generator_in_between_changes_nothing() -> None:
    alone = draws(20)
    first, second = (Sampler(SamplingOptions(seed=seed), (), ()) for seed in (1, 2))
    mixed = []
    for _ in range(20):
        mixed.append(first.pick(LOGITS).token_id)
        second.pick(LOGITS)
        torch.rand(3)
    assert mixed == alone


def test_penalties_move_away_from_what_was_seen() -> None:
    close = torch.tensor([1.0, 0.9, -1.0])
    repeated = Sampler(SamplingOptions(temperature=0.0, repetition_penalty=1.5), (0,), ())
    assert repeated.pick(close).token_id == 1
    present = Sampler(SamplingOptions(temperature=0.0, presence_penalty=0.5), (), ())
    assert [present.pick(close).token_id for _ in range(2)] == [0, 1]
    frequent = Sampler(SamplingOptions(temperature=0.0, frequency_penalty=0.06), (), ())
    assert [frequent.pick(close).token_id for _ in range(5)] == [0, 0, 1, 0, 1]


def test_ends_are_forbidden_before_min_tokens() -> None:
    sampler = Sampler(SamplingOptions(temperature=0.0, min_tokens=2, stop_token_ids=(1,)), (), (0,))
    assert [sampler.pick(LOGITS).token_id for _ in range(3)] == [2, 2, 0]


def test_logprobs_are_of_the_distribution_before_sampling_options() -> None:
    sampler = Sampler(SamplingOptions(temperature=0.0, logprobs=2, logit_bias={3: 99.0}), (), ())
    pick = sampler.pick(LOGITS)
    assert pick.token_id == 3
    assert pick.logprob == pytest.approx(float(LOGITS[3]))
    assert [token_id for token_id, _ in pick.top] == [0, 1]


def test_the_scores_given_are_not_changed() -> None:
    scores = LOGITS.clone()
    Sampler(SamplingOptions(logit_bias={1: 3.0}, repetition_penalty=2.0, seed=0), (0,), ()).pick(scores)
    assert torch.equal(scores, LOGITS)


def test_unknown_ids_in_logit_bias_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="token id 5, expected below 5"):
        Sampler(SamplingOptions(logit_bias={5: 1.0}), (), ()).pick(LOGITS)


@pytest.mark.parametrize("scores", [[-torch.inf] * 3, [torch.nan] * 3, [torch.inf, 0.0, 0.0]])
def test_scores_that_allow_no_token_are_refused(scores: list[float]) -> None:
    with pytest.raises(InvalidRequestError, match="expected at least one token"):
        Sampler(SamplingOptions(), (), ()).pick(torch.tensor(scores))


def test_biases_are_bounded() -> None:
    for biases in ({1: 1e39}, {1: float("nan")}, dict.fromkeys(range(2000), 1.0)):
        with pytest.raises(InvalidRequestError, match="logit_bias"):
            SamplingOptions(logit_bias=biases).validate()


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.999, 0.9999999])
def test_top_p_keeps_the_same_tokens_as_sorting_the_whole_vocabulary(top_p: float) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    probs, ids = torch.softmax(logits.double(), -1).sort(descending=True)
    kept = int((probs.cumsum(-1) - probs < top_p).sum())
    sampler = Sampler(SamplingOptions(seed=3, top_p=top_p), (), ())
    drawn = {sampler.pick(logits).token_id for _ in range(2000)}
    assert drawn <= set(ids[:kept].tolist())
    assert len(drawn) > min(kept, 700) / 2


def test_frequencies_follow_the_distribution_over_a_large_vocabulary() -> None:
    logits = torch.full((50_000,), -12.0)
    logits[[7, 49_999]] = torch.log(torch.tensor([0.3, 0.6]))
    sampler = Sampler(SamplingOptions(seed=4), (), ())
    counts = Counter(sampler.pick(logits).token_id for _ in range(2000))
    assert abs(counts[7] / 2000 - 0.3 / 1.2) < 0.04
    assert abs(counts[49_999] / 2000 - 0.6 / 1.2) < 0.04
