"""One packed batch: its rows predict the tokens behind them, and only those that count."""

from __future__ import annotations

import torch
from corpora import corpora, numbered_corpus
from hypothesis import given
from hypothesis import strategies as st

from braid_orchestrator.training.data import TokenCorpus
from braid_orchestrator.training.data.batch import make_batch
from braid_orchestrator.training.data.windows import PackedWindows


@given(corpora(), st.integers(1, 8))
def test_every_row_that_counts_predicts_the_token_behind_it(corpus: TokenCorpus, length: int) -> None:
    windows = PackedWindows(corpus, length)
    begins, lengths = windows.places(windows.in_order())
    batch = make_batch(corpus, begins, lengths)
    assert batch.token_ids_T.dtype == batch.targets_R.dtype == torch.int64
    assert batch.token_ids_T.numel() == sum(batch.lengths) and batch.lengths == tuple(lengths.tolist())
    # Ids are places: the token behind a row is one more, also where that is in no row of the window.
    assert torch.equal(batch.token_ids_T[batch.loss_rows_R] + 1, batch.targets_R)
    owner = torch.arange(corpus.num_documents).repeat_interleave(corpus.bounds.diff())
    learned = [
        place
        for place in range(1, corpus.num_tokens)
        if place - int(corpus.bounds[owner[place]]) >= int(corpus.uncounted[owner[place]])
    ]
    assert batch.targets_R.tolist() == learned and batch.num_targets == len(learned)


def test_sequences_of_different_lengths_are_packed_with_their_completions_to_learn() -> None:
    corpus = numbered_corpus([5, 3, 4], [3, 1, 2], has_prompts=True)
    batch = make_batch(corpus, torch.tensor([8, 0]), torch.tensor([3, 4]))
    assert batch.token_ids_T.tolist() == [8, 9, 10, 0, 1, 2, 3]
    assert batch.lengths == (3, 4)
    assert batch.loss_rows_R.tolist() == [1, 2, 5, 6]
    assert batch.targets_R.tolist() == [10, 11, 3, 4]


@given(corpora(), st.integers(1, 8), st.integers(1, 9))
def test_the_parts_of_a_batch_together_are_the_batch(corpus: TokenCorpus, length: int, count: int) -> None:
    windows = PackedWindows(corpus, length)
    batch = make_batch(corpus, *windows.places(windows.in_order()))
    parts = batch.parts(count)
    assert 1 <= len(parts) <= count
    assert torch.equal(torch.cat([part.token_ids_T for part in parts]), batch.token_ids_T)
    assert torch.equal(torch.cat([part.targets_R for part in parts]), batch.targets_R)
    assert sum((part.lengths for part in parts), ()) == batch.lengths
    for part in parts:
        assert sum(part.lengths) == part.token_ids_T.numel()
        assert torch.equal(part.token_ids_T[part.loss_rows_R] + 1, part.targets_R)


def test_parts_have_about_as_many_rows() -> None:
    corpus = numbered_corpus([101])
    windows = PackedWindows(corpus, 10)
    batch = make_batch(corpus, *windows.places(windows.in_order()))
    assert [part.token_ids_T.numel() for part in batch.parts(5)] == [20] * 5
    assert [part.token_ids_T.numel() for part in batch.parts(1)] == [100]
