"""Cutting a corpus: each token is predicted exactly once per epoch, and no window goes where it mustn't."""

from __future__ import annotations

import pytest
import torch
from corpora import corpora, numbered_corpus
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from braid_orchestrator.training.data import TokenCorpus
from braid_orchestrator.training.data.windows import PackedWindows, WholeWindows, Windows, packing_of
from braid_rpc.errors import InvalidRequestError


def predicted(windows: Windows, numbers: Tensor, max_length: int) -> list[int]:
    """The places of all tokens that these windows predict, ascending."""
    begins, lengths = windows.places(numbers)
    assert (lengths >= 1).all() and (lengths <= max_length).all() and (begins >= 0).all()
    return sorted(
        place + 1
        for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True)
        for place in range(begin, begin + length)
    )


@given(corpora(), st.integers(1, 12), st.integers(0, 3))
def test_packed_windows_predict_every_token_but_the_first_once_per_epoch(
    corpus: TokenCorpus, length: int, seed: int
) -> None:
    windows = PackedWindows(corpus, length)
    generator = Generator().manual_seed(seed)
    for numbers in (windows.epoch(generator), windows.epoch(generator), windows.in_order()):
        assert predicted(windows, numbers, length) == list(range(1, corpus.num_tokens))


@given(corpora(), st.integers(1, 12), st.integers(0, 3))
def test_whole_windows_predict_every_token_but_first_ones_once_and_stay_within_documents(
    corpus: TokenCorpus, length: int, seed: int
) -> None:
    firsts = set(corpus.bounds.tolist())
    learned = set(torch.arange(corpus.num_tokens)[corpus.counts(torch.arange(corpus.num_tokens))].tolist())
    if not learned - firsts:
        with pytest.raises(InvalidRequestError):
            WholeWindows(corpus, length)
        return
    windows = WholeWindows(corpus, length)
    for numbers in (windows.epoch(Generator().manual_seed(seed)), windows.in_order()):
        places = predicted(windows, numbers, length)
        assert len(set(places)) == len(places)
        assert learned - firsts <= set(places) <= set(range(corpus.num_tokens)) - firsts
        begins, lengths = windows.places(numbers)
        documents = [torch.searchsorted(corpus.bounds, at, right=True) for at in (begins, begins + lengths)]
        assert torch.equal(*documents)
        # None is run for nothing.
        for begin, num in zip(begins.tolist(), lengths.tolist(), strict=True):
            assert learned & set(range(begin + 1, begin + num + 1))


def test_epochs_are_cut_and_ordered_differently_and_alike_for_a_seed() -> None:
    windows = PackedWindows(numbered_corpus([400]), 10)
    generator = Generator().manual_seed(0)
    first, second = windows.epoch(generator), windows.epoch(generator)
    assert torch.equal(first, windows.epoch(Generator().manual_seed(0)))
    assert not torch.equal(first.sort().values, second.sort().values)  # another offset
    whole = WholeWindows(numbered_corpus([5] * 50), 10)
    orders = [whole.epoch(generator) for _ in range(2)]
    assert not torch.equal(*orders)
    assert torch.equal(orders[0].sort().values, orders[1].sort().values)


def test_a_long_document_is_cut_into_windows_that_overlap_by_the_token_predicted() -> None:
    begins, lengths = (windows := WholeWindows(numbered_corpus([3, 11]), 4)).places(windows.in_order())
    assert (begins.tolist(), lengths.tolist()) == ([0, 3, 7, 11], [2, 4, 4, 2])


def test_windows_of_a_prompt_alone_are_left_out() -> None:
    begins, _ = (windows := WholeWindows(numbered_corpus([9, 3], [7, 0]), 4)).places(windows.in_order())
    assert begins.tolist() == [4, 9]  # the one of tokens 1 to 4 has nothing to learn


@pytest.mark.parametrize("kind", [PackedWindows, WholeWindows])
def test_a_corpus_with_nothing_to_predict_is_refused(kind: type) -> None:
    with pytest.raises(InvalidRequestError, match="at least 2"):
        kind(numbered_corpus([1]), 4)


def test_documents_with_prompts_are_never_packed() -> None:
    prompts = numbered_corpus([5], [3], has_prompts=True)
    assert packing_of(prompts, None) == packing_of(prompts, "whole") == "whole"
    assert packing_of(numbered_corpus([5]), None) == "packed"
    with pytest.raises(InvalidRequestError, match="packing: got 'packed' for prompts with completions"):
        packing_of(prompts, "packed")
    with pytest.raises(InvalidRequestError, match="got 'tight', expected 'packed' or 'whole'"):
        packing_of(prompts, "tight")  # type: ignore[arg-type]
