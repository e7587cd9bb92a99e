"""Runs a component that looks back over packed rows, sequence by sequence. Knows no particular component.

Letters: B sequences of one length, T packed rows, n rows of one sequence in this call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from braid_fusion.context import FusionContext
from braid_fusion.errors import PlanError
from braid_fusion.row_cache import RowCache


def run_by_sequence(
    component: Callable[..., Tensor], rows_T: Sequence[Tensor], context: FusionContext, key: int
) -> Tensor:
    """``component(*rows_Bn, history=…)`` for each sequence by itself, or for all at once where they allow it.

    Args:
        component: takes each of ``rows_T`` as (B, n, …) and gives (B, n, …).
        rows_T: tensors (T, …), all packed as the context says.
        key: of the component's own part in each sequence's cache.

    Returns: (T, …). Raises: PlanError if pieces of sequences come without caches.
    """
    counts, caches = context.row_counts, context.caches
    if caches is None:
        if any(context.positions):
            raise PlanError(
                "resonance: got rows from the middle of a sequence, expected its caches with them"
            )
        if len(set(counts)) == 1:  # equal lengths, as in training: one batch
            return component(
                *(rows.view(len(counts), counts[0], *rows.shape[1:]) for rows in rows_T)
            ).flatten(0, 1)
    elif len(counts) == 1:
        return component(*(rows.unsqueeze(0) for rows in rows_T), history=caches[0].part(key)).squeeze(0)
    pieces = []
    splits = zip(*(torch.split(rows, [*counts]) for rows in rows_T), strict=True)
    for index, piece_n in enumerate(splits):
        if counts[index] == 0:  # a sequence that has no row in this lane
            continue
        history: RowCache | None = None if caches is None else caches[index].part(key)
        pieces.append(component(*(rows.unsqueeze(0) for rows in piece_n), history=history).squeeze(0))
    return torch.cat(pieces)
