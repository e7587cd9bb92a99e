"""Stretches of text that end where a token of every model ends."""

from __future__ import annotations

import math

import pytest
import torch
from models import reading_backend
from torch import Tensor

from braid_orchestrator.bench.worth.stretches import mixed_by_stretches
from braid_orchestrator.evaluation import LaneReader
from braid_orchestrator.evaluation.mixes import posterior_log_weights
from braid_orchestrator.evaluation.texts import LaneText
from braid_orchestrator.training.data import Document, MemorySource

TEXTS = ("Once upon a time there was a fox; they're friends, aren't they?", "Größe 12345  in the\n\nwood")


def lane(kind: str) -> LaneText:
    reader = LaneReader(reading_backend("a", kind, 0))
    return reader.read(MemorySource("given", [Document(text, text) for text in TEXTS]), 512)


def logprobs(of: LaneText, seed: int) -> Tensor:
    draw = torch.rand(of.counts_N.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.where(of.counts_N, -5.0 * draw, 0.0)


def by_document(of: LaneText, values_N: Tensor) -> list[Tensor]:
    return [
        values_N[begin:end] for begin, end in zip(of.corpus.bounds[:-1], of.corpus.bounds[1:], strict=True)
    ]


@pytest.mark.parametrize("forgetting", [0.5, 1.0])
def test_with_one_tokenizer_a_stretch_is_a_token(forgetting: float) -> None:
    one = lane("llama")
    mine, its = logprobs(one, 1), logprobs(one, 2)
    found = mixed_by_stretches((one, one), (mine, its), forgetting)
    own_TS = torch.stack([mine, its], dim=1)[one.counts_N]
    lengths = [int(counts.sum()) for counts in by_document(one, one.counts_N)]
    begin = 0
    for length in lengths:  # a document's first stretch is the anchor's
        own_TS[begin, 1] = own_TS[begin, 0]
        begin += length
    expected = (posterior_log_weights(own_TS, lengths, forgetting) + own_TS).logsumexp(-1)
    torch.testing.assert_close(found[one.counts_N], expected)


@pytest.mark.parametrize("other", ["byte bpe", "bytes", "words", "unigram"])
def test_without_forgetting_it_is_bayes_over_whole_texts(other: str) -> None:
    """Whatever the tokens: half of what either gives all of the text from where both have begun."""
    anchor, partner = lane("llama"), lane(other)
    mine, its = logprobs(anchor, 1), logprobs(partner, 2)
    found = mixed_by_stretches((anchor, partner), (mine, its), 1.0)
    same = mixed_by_stretches((anchor, partner), (mine, its * 1e9), 1.0)  # a partner that is always wrong
    assert not bool(found[~anchor.counts_N].any())
    for document, (mixed_N, alone_N, own_N, of_partner_N) in enumerate(
        zip(
            by_document(anchor, found),
            by_document(anchor, same),
            by_document(anchor, mine),
            by_document(partner, its),
            strict=True,
        )
    ):
        assert float(alone_N.sum()) == pytest.approx(float(own_N.sum()) - math.log(2), abs=1e-6), document
        # What is before the first end of both is the anchor's alone, so of the partner's all or less is in it.
        least = float(own_N.sum()) - math.log(2)
        most = max(float(own_N.sum()), float(of_partner_N.sum()))
        assert least <= float(mixed_N.sum()) <= most + 1e-9


def test_a_partner_that_knows_wins_but_for_the_start() -> None:
    anchor, partner = lane("llama"), lane("words")
    poor = torch.where(anchor.counts_N, -10.0, 0.0).double()
    sure = torch.where(partner.counts_N, -0.01, 0.0).double()
    mixed_N = mixed_by_stretches((anchor, partner), (poor, sure), 0.9)
    gained = mixed_N.sum() - poor.sum()
    assert float(gained) > 0.5 * float(-poor.sum())
    assert float(mixed_by_stretches((anchor, partner), (poor, poor_like(partner)), 0.9).sum()) < float(
        mixed_N.sum()
    )


def poor_like(of: LaneText) -> Tensor:
    return torch.where(of.counts_N, -10.0, 0.0).double()
