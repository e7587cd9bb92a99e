"""Corpora: put together, taken apart and told from one another."""

from __future__ import annotations

import pytest
import torch
from corpora import corpora, numbered_corpus
from hypothesis import given
from hypothesis import strategies as st

from braid_orchestrator.training.data import TokenCorpus
from braid_orchestrator.training.data.corpus import CorpusBuilder
from braid_orchestrator.training.data.held_out import split_corpus
from braid_rpc.errors import InvalidRequestError


def documents_of(corpus: TokenCorpus) -> list[tuple[list[int], int]]:
    """Each document's ids, and how many of them are not to be learned."""
    parts = torch.split(corpus.token_ids_N, corpus.bounds.diff().tolist())
    return [(part.tolist(), count) for part, count in zip(parts, corpus.uncounted.tolist(), strict=True)]


def test_a_builder_holds_documents_in_four_bytes_a_token() -> None:
    builder = CorpusBuilder()
    assert builder.build() is None
    builder = CorpusBuilder()
    for ids in ([7, 8], [9]):
        builder.extend(ids)
        assert builder.num_tokens_pending == len(ids)
        builder.end_document(len(ids) - 1, has_prompt=len(ids) == 1)
    corpus = builder.build()
    assert corpus is not None and corpus.has_prompts
    assert documents_of(corpus) == [([7, 8], 1), ([9], 0)]
    assert corpus.token_ids_N.element_size() == 4


@given(st.lists(corpora(), min_size=1, max_size=3))
def test_joined_corpora_have_all_documents(parts: list[TokenCorpus]) -> None:
    joined = TokenCorpus.joined(parts)
    assert documents_of(joined) == [document for part in parts for document in documents_of(part)]
    assert not joined.has_prompts
    assert TokenCorpus.joined([*parts, numbered_corpus([3], [1], has_prompts=True)]).has_prompts


@given(corpora(), st.data())
def test_a_cut_takes_a_corpus_apart_and_keeps_what_counts(corpus: TokenCorpus, data: st.DataObject) -> None:
    place = data.draw(st.integers(1, corpus.num_tokens - 1))
    before, behind = corpus.cut_at(place)
    places = torch.arange(corpus.num_tokens)
    assert torch.equal(torch.cat([before.token_ids_N, behind.token_ids_N]), corpus.token_ids_N)
    counted = [part.counts(torch.arange(part.num_tokens)) for part in (before, behind)]
    assert torch.equal(torch.cat(counted), corpus.counts(places))
    bounds = {*before.bounds.tolist(), *(behind.bounds + place).tolist()}
    assert bounds == {*corpus.bounds.tolist(), place}
    assert before.bounds[-1] == before.num_tokens and behind.bounds[-1] == behind.num_tokens


def test_a_fingerprint_tells_corpora_apart() -> None:
    assert numbered_corpus([3, 4]).fingerprint == numbered_corpus([3, 4]).fingerprint
    others = [
        numbered_corpus(lengths, uncounted)
        for lengths, uncounted in (
            ([3, 4], None),
            ([4, 3], None),
            ([7], None),
            ([3, 4], [1, 0]),
            ([3, 5], None),
        )
    ]
    assert len({corpus.fingerprint for corpus in others}) == len(others)


@given(corpora(max_documents=30, max_length=12), st.floats(0.05, 0.95))
def test_what_is_held_out_is_not_trained_on_and_nothing_is_lost(corpus: TokenCorpus, share: float) -> None:
    try:
        training, held_out = split_corpus(corpus, share, "text")
    except InvalidRequestError:
        assert min(share, 1 - share) * corpus.num_tokens < 2.5
        return
    ids = [set(part.token_ids_N.tolist()) for part in (training, held_out)]
    assert not ids[0] & ids[1] and ids[0] | ids[1] == set(range(corpus.num_tokens))
    assert training.num_documents and held_out.num_documents
    wanted = share * corpus.num_tokens
    assert wanted / 2 - 0.5 <= held_out.num_tokens <= wanted * 2 + 0.5  # a token is not split
    assert documents_of(held_out) == documents_of(split_corpus(corpus, share, "text")[1])


def test_whole_documents_from_all_over_are_held_out_where_there_are_many() -> None:
    corpus = numbered_corpus([10] * 100)
    training, held_out = split_corpus(corpus, 0.2, "text")
    assert (training.num_documents, held_out.num_documents) == (80, 20)
    begins = [ids[0] for ids, _ in documents_of(held_out)]
    assert all(begin % 10 == 0 for begin in begins) and begins == sorted(begins)
    assert min(begins) < 300 and max(begins) > 700


@pytest.mark.parametrize("lengths", [[1000], [900, 10, 90]])
def test_the_end_is_held_out_where_documents_are_few_and_long(lengths: list[int]) -> None:
    training, held_out = split_corpus(numbered_corpus(lengths), 0.2, "text")
    assert training.token_ids_N.tolist() == list(range(800))
    assert held_out.token_ids_N.tolist() == list(range(800, 1000))


def test_examples_are_never_cut() -> None:
    corpus = numbered_corpus([50, 50, 50], [3, 3, 3], has_prompts=True)
    training, held_out = split_corpus(corpus, 0.02, "examples")
    assert (training.num_documents, held_out.num_documents) == (2, 1)
    with pytest.raises(
        InvalidRequestError, match=r"examples: got 50 tokens in 1 document\(s\), expected enough"
    ):
        split_corpus(numbered_corpus([50], [3], has_prompts=True), 0.1, "examples")


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, float("nan")])
def test_a_share_is_between_nothing_and_all(share: float) -> None:
    with pytest.raises(InvalidRequestError, match=f"held-out share: got {share}, expected more than 0"):
        split_corpus(numbered_corpus([50]), share, "text")
