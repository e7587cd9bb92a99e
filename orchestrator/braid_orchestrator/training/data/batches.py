"""Batches of a corpus: endless, shuffled and resumable for training; once through, always the same for evaluation.

**Several workers.** The batches of a seed are one sequence, whoever takes them. Of N workers, worker r takes its
batches r, r + N, r + 2N, …: what N workers take in a step of A batches each is what one worker takes in a step of
A·N. A worker's position is stored as that of the whole sequence before the round of N at hand, so all workers store
the same, and any number of workers can go on from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import torch

from braid_fusion.training import EpochOrder
from braid_fusion.training.identity import check_same
from braid_orchestrator.training.data.batch import TrainingBatch, make_batch
from braid_orchestrator.training.data.corpus import TokenCorpus
from braid_orchestrator.training.data.windows import Packing, cut_windows, packing_of
from braid_rpc.errors import InvalidRequestError


class TextBatches:
    """Endless batches that together hold every window once per epoch, in a new order each time. Iterating again goes
    on where it stopped, and `state_dict` says where that is. A batch may go over the end of an epoch.

    Args:
        window: tokens that are run as one sequence, at most.
        batch_size: windows per batch.
        seed: of the order; the same seed gives the same batches.
        packing: see `windows`; None: whole documents if there are prompts among them, else packed.
        name: of the corpus, in errors.

    Raises: InvalidRequestError for numbers out of range, or a packed corpus shorter than one window.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        window: int,
        batch_size: int,
        seed: int = 0,
        packing: Packing | None = None,
        name: str = "text",
    ) -> None:
        if batch_size < 1:
            raise InvalidRequestError(f"batch size: got {batch_size} windows, expected at least 1")
        self.corpus = corpus
        self.window = window
        self.batch_size = batch_size
        self.seed = seed
        self.packing = packing_of(corpus, packing)
        self._windows = cut_windows(corpus, window, self.packing)
        if self.packing == "packed" and corpus.num_tokens < window + 1:
            raise InvalidRequestError(
                f"{name}: got {corpus.num_tokens} tokens, expected at least {window + 1}: a window of {window} and "
                "the token behind it"
            )
        self._order = EpochOrder(self._windows.epoch, seed)
        self._rank, self._num_workers = 0, 1

    @property
    def batches_per_epoch(self) -> float:
        """Of all workers together; about, where epochs are cut differently."""
        return self._windows.in_order().numel() / self.batch_size

    def __iter__(self) -> Iterator[TrainingBatch]:
        first = self._rank * self.batch_size
        while True:
            of_all_workers = self._order.take(self._num_workers * self.batch_size)
            own = of_all_workers[first : first + self.batch_size]
            yield make_batch(self.corpus, *self._windows.places(own))

    def share(self, rank: int, num_workers: int) -> TextBatches:
        """A worker's part of these batches, from where these are; see the module. It goes on by itself.

        Raises: InvalidRequestError for a rank that there isn't, or where these are a part already.
        """
        if not 0 <= rank < num_workers:
            raise InvalidRequestError(f"rank: got {rank} of {num_workers} workers, expected 0 to one less")
        if self._num_workers > 1:
            raise InvalidRequestError(
                f"share: got the part of worker {self._rank} of {self._num_workers}, expected the whole"
            )
        part = copy(self)
        part._order = EpochOrder(self._windows.epoch, self.seed)
        part._order.load_state_dict(self._order.state_dict())
        part._rank, part._num_workers = rank, num_workers
        return part

    def state_dict(self) -> dict[str, Any]:
        """The position, the same for all workers after as many batches, and what makes the source what it is."""
        return {"source": self._identity(), "order": self._order.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position. Raises: CheckpointMismatchError if it is one in other batches."""
        check_same("source of data", state["source"], self._identity())
        self._order.load_state_dict(state["order"])

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": type(self).__name__,
            "num_tokens": self.corpus.num_tokens,
            "num_documents": self.corpus.num_documents,
            "corpus_sha256": self.corpus.fingerprint,
            "window": self.window,
            "batch_size": self.batch_size,
            "packing": self.packing,
            "seed": self.seed,
        }


class EvaluationBatches:
    """Every token to be learned once, in the order of the text; iterating again gives the same. The last batch may
    be smaller.

    Args:
        window, batch_size, packing: as for `TextBatches`; a corpus may be shorter than a window.
        max_windows: take no more than that, evenly spread over the text; None: all.

    Raises: InvalidRequestError for numbers out of range, or a corpus that has nothing to predict.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        window: int,
        batch_size: int,
        packing: Packing | None = None,
        max_windows: int | None = None,
    ) -> None:
        for name, value in (("batch size", batch_size), ("max_windows", max_windows)):
            if value is not None and value < 1:
                raise InvalidRequestError(f"{name}: got {value} windows, expected at least 1")
        self._corpus = corpus
        self._windows = cut_windows(corpus, window, packing_of(corpus, packing))
        numbers = self._windows.in_order()
        if max_windows is not None and max_windows < numbers.numel():
            numbers = numbers[torch.arange(max_windows) * numbers.numel() // max_windows]
        self._batches = torch.split(numbers, batch_size)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[TrainingBatch]:
        for numbers in self._batches:
            yield make_batch(self._corpus, *self._windows.places(numbers))
