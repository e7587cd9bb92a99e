"""Several windows as one packed batch, and which of its rows predict what. Knows no order of windows.

Shapes: T packed rows of all windows, R of them whose next token is to be learned, B windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from braid_orchestrator.training.data.corpus import TokenCorpus


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """Whole sequences of the anchor's ids without padding, as `run_pass` takes them.

    ``token_ids_T``: int64, sequences of ``lengths`` one after the other. ``loss_rows_R``: int64, ascending, the rows
    whose next token counts for the loss; ``targets_R``: int64, those tokens. The next token of a sequence's last row
    is not in the batch otherwise.
    """

    token_ids_T: Tensor  # noqa: N815 - shape letters
    lengths: tuple[int, ...]
    loss_rows_R: Tensor  # noqa: N815 - shape letters
    targets_R: Tensor  # noqa: N815 - shape letters

    @property
    def num_targets(self) -> int:
        """R, what a loss over this batch is a mean of; perhaps none."""
        return self.targets_R.numel()

    def parts(self, count: int) -> list[TrainingBatch]:
        """At most ``count`` batches that together are this one, whole sequences with about as many rows each.

        A mean over this batch is that of theirs, weighted with ``num_targets``.
        """
        num_rows = self.token_ids_T.numel()
        ends = [0, *accumulate(self.lengths)]
        groups: dict[int, list[int]] = {}
        for sequence, length in enumerate(self.lengths):
            middle = ends[sequence] + (length - 1) / 2
            groups.setdefault(int(middle * count / num_rows), []).append(sequence)
        return [self._part(members[0], members[-1] + 1, ends) for members in groups.values()]

    def _part(self, first: int, last: int, ends: list[int]) -> TrainingBatch:
        begin, end = ends[first], ends[last]
        is_inside = (self.loss_rows_R >= begin) & (self.loss_rows_R < end)
        return TrainingBatch(
            self.token_ids_T[begin:end],
            self.lengths[first:last],
            self.loss_rows_R[is_inside] - begin,
            self.targets_R[is_inside],
        )


def make_batch(corpus: TokenCorpus, begins_B: Tensor, lengths_B: Tensor) -> TrainingBatch:
    """The batch of windows that begin at those places of a corpus, with those lengths of at least 1 each."""
    first_rows_B = lengths_B.cumsum(0) - lengths_B
    rows = torch.arange(int(lengths_B.sum()))
    places_T = rows + (begins_B - first_rows_B).repeat_interleave(lengths_B)
    loss_rows_R = corpus.counts(places_T + 1).nonzero().squeeze(1)
    return TrainingBatch(
        corpus.token_ids_N[places_T].to(torch.int64),
        tuple(lengths_B.tolist()),
        loss_rows_R,
        corpus.token_ids_N[places_T[loss_rows_R] + 1].to(torch.int64),
    )
