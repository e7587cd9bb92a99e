"""Corpora whose token ids say where they stand, and texts that are in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from models import EOS, byte_tokenizer

from braid_orchestrator.training.data import Document, DocumentEncoder, MemorySource, TokenCorpus


def numbered_corpus(
    lengths: Sequence[int], uncounted: Sequence[int] | None = None, *, has_prompts: bool = False
) -> TokenCorpus:
    """Documents of those lengths; token i of the corpus has the id i."""
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    skipped = torch.tensor(uncounted or [0] * len(lengths), dtype=torch.int32)
    return TokenCorpus(torch.arange(int(bounds[-1]), dtype=torch.int32), bounds, skipped, has_prompts)


@st.composite
def corpora(draw: st.DrawFn, *, max_documents: int = 6, max_length: int = 20) -> TokenCorpus:
    """Corpora as `numbered_corpus` makes them, with at least two tokens; some documents begin with a prompt."""
    lengths = draw(st.lists(st.integers(1, max_length), min_size=1, max_size=max_documents))
    if sum(lengths) < 2:
        lengths = [2]
    uncounted = [draw(st.integers(0, length - 1)) for length in lengths]
    return numbered_corpus(lengths, uncounted)


def byte_encoder() -> DocumentEncoder:
    """Of the tests' tokenizer, which ends documents."""
    tokenizer = byte_tokenizer()
    return DocumentEncoder(tokenizer.backend_tokenizer.to_str(), [tokenizer.convert_tokens_to_ids(EOS)])


def texts_given(*texts: str) -> MemorySource:
    """Plain texts, named by their numbers."""
    return MemorySource(
        "given", [Document(f"text {i}", text, size=len(text)) for i, text in enumerate(texts)]
    )
