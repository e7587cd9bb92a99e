"""Where a corpus is cut into windows: what is run as one sequence, each token of it predicting the next.

**Packed**: documents are one long text, and windows may go over their ends, as in pretraining. Each epoch cuts at
another offset, so the first and the last window are shorter than the others, and every token but the corpus's first
is predicted exactly once per epoch.

**Whole**: no window goes over the end of a document. A document is one window, or several if it is too long, always
cut at the same places. Every token but each document's first is predicted exactly once per epoch. Windows without
anything to learn are left out.

In both, what `TokenCorpus.counts` says no to is read but not learned.

Letters: N tokens of the corpus, B windows.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from braid_orchestrator.training.data.corpus import TokenCorpus
from braid_rpc.errors import InvalidRequestError

Packing = Literal["packed", "whole"]


class Windows(Protocol):
    """All windows of a corpus, by numbers that mean something to this object only."""

    def epoch(self, generator: Generator) -> Tensor:
        """An epoch's windows, (B,) int64, in an order drawn from the generator."""
        ...

    def in_order(self) -> Tensor:
        """Windows that hold each token to be learned once, (B,) int64, always the same, in the order of the text."""
        ...

    def places(self, numbers_B: Tensor) -> tuple[Tensor, Tensor]:
        """Where windows begin in the corpus and their lengths, (B,) int64 each; each predicts one token further."""
        ...


class PackedWindows:
    """See the module. A window's number is where it would begin if the first were as long as the others.

    Raises: InvalidRequestError for a corpus without two tokens.
    """

    def __init__(self, corpus: TokenCorpus, length: int) -> None:
        if corpus.num_tokens < 2:
            raise InvalidRequestError(f"text: got {corpus.num_tokens} tokens, expected at least 2")
        self._length = length
        self._end = corpus.num_tokens - 1  # the last token is only predicted

    def epoch(self, generator: Generator) -> Tensor:
        """As `Windows.epoch`."""
        first_length = int(torch.randint(1, self._length + 1, (), generator=generator))
        numbers = torch.arange(first_length - self._length, self._end, self._length)
        return numbers[torch.randperm(numbers.numel(), generator=generator)]

    def in_order(self) -> Tensor:
        """As `Windows.in_order`."""
        return torch.arange(0, self._end, self._length)

    def places(self, numbers_B: Tensor) -> tuple[Tensor, Tensor]:
        """As `Windows.places`."""
        begins_B = numbers_B.clamp(min=0)
        return begins_B, (numbers_B + self._length).clamp(max=self._end) - begins_B


class WholeWindows:
    """See the module. Windows are numbered through.

    Raises: InvalidRequestError if no document has anything to learn.
    """

    def __init__(self, corpus: TokenCorpus, length: int) -> None:
        to_predict = corpus.bounds.diff() - 1
        num_windows = (to_predict + length - 1) // length
        document = torch.arange(corpus.num_documents).repeat_interleave(num_windows)
        first_windows = num_windows.cumsum(0) - num_windows
        begins = (torch.arange(document.numel()) - first_windows[document]) * length
        lengths = (to_predict[document] - begins).clamp(max=length)
        learns = begins + lengths >= corpus.uncounted[document]
        if not learns.any():
            raise InvalidRequestError(
                f"text: got {corpus.num_documents} document(s) of at most {int(to_predict.max()) + 1} token(s), "
                "expected one with at least 2 and one to learn"
            )
        self._begins = (corpus.bounds[document] + begins)[learns]
        self._lengths = lengths[learns]

    def epoch(self, generator: Generator) -> Tensor:
        """As `Windows.epoch`."""
        return torch.randperm(self._begins.numel(), generator=generator)

    def in_order(self) -> Tensor:
        """As `Windows.in_order`."""
        return torch.arange(self._begins.numel())

    def places(self, numbers_B: Tensor) -> tuple[Tensor, Tensor]:
        """As `Windows.places`."""
        return self._begins[numbers_B], self._lengths[numbers_B]


def packing_of(corpus: TokenCorpus, asked: Packing | None) -> Packing:
    """What was asked for; by default whole documents where prompts are among them, which are never packed.

    Raises: InvalidRequestError for prompts to be packed, or another word.
    """
    if asked not in (None, "packed", "whole"):
        raise InvalidRequestError(f"packing: got {asked!r}, expected 'packed' or 'whole'")
    if corpus.has_prompts and asked == "packed":
        raise InvalidRequestError("packing: got 'packed' for prompts with completions, expected 'whole'")
    return asked or ("whole" if corpus.has_prompts else "packed")


def cut_windows(corpus: TokenCorpus, length: int, packing: Packing) -> Windows:
    """A corpus in windows of at most ``length`` tokens that each predict the next.

    Raises: InvalidRequestError for a length below 1, or a corpus that has nothing to predict.
    """
    if length < 1:
        raise InvalidRequestError(f"window: got {length} tokens, expected at least 1")
    return (PackedWindows if packing == "packed" else WholeWindows)(corpus, length)
