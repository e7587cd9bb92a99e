"""One forward of a model as its grafted layers see it: real positions packed, those of earlier calls behind them.

Letters: B sequences, T positions of this call, N packed rows (the real ones among B·T), D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from braid_fusion.context import FusionContext
from braid_fusion.errors import FusionShapeError
from braid_fusion.grafting.cache import GraftRows, cached_positions
from braid_fusion.grafting.rewind import CacheMark


class ForwardPass:
    """From the model's first grafted layer to its end.

    Args:
        attention_mask: as the model got it: (B, at least T), (B, 1, T, keys), several of these by kind, or None.
        cache: the cache that the model was given, if any.
        rows: where rows are kept, or None: then each sequence is whole.
        want_metrics: whether the layers shall measure.
    """

    def __init__(
        self, attention_mask: Any, cache: Cache | None, rows: GraftRows | None, want_metrics: bool
    ) -> None:
        self.cache, self.rows = cache, rows
        self.row_metrics: dict[int, dict[str, Tensor]] = {}
        self.sums_N: dict[int, tuple[Tensor, Tensor]] = {}  # of each row before and behind a layer
        self.shape: tuple[int, int] | None = None
        self.mark = None if cache is None else CacheMark(cache)
        self._mask = attention_mask
        self._want_metrics = want_metrics
        self._key_offset = _key_offset(attention_mask, cache)

    def fit(self, hidden_BTD: Tensor) -> None:
        """Learn the shape from the states at the first grafted layer. Raises: FusionShapeError."""
        batch, length = self.shape = (hidden_BTD.shape[0], hidden_BTD.shape[1])
        self.real_BT = self._real(batch, length)
        if self.real_BT is None:
            self.index_N, self.counts = None, [length] * batch
        else:
            self.index_N = self.real_BT.flatten().nonzero().flatten()
            self.counts = self.real_BT.sum(1).tolist()
        if self.rows is not None:
            self.rows.expect(batch)
        self.present = [index for index, count in enumerate(self.counts) if count]
        row_counts = tuple(self.counts[index] for index in self.present)
        starts = (
            (0,) * len(row_counts)
            if self.rows is None
            else tuple(self.rows.lengths[index] for index in self.present)
        )
        self._context = FusionContext(row_counts, starts, None, self._want_metrics)

    def context(self, layer_idx: int) -> FusionContext:
        """What a layer's packed rows are."""
        if self.rows is None:
            return self._context
        known = self._context
        caches = tuple(self.rows.sequences[index].part(layer_idx) for index in self.present)
        return FusionContext(known.row_counts, known.positions, caches, known.want_metrics)

    def pack(self, hidden_BTD: Tensor) -> Tensor:
        """The real positions, (N, D)."""
        flat_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        return flat_ND if self.index_N is None else flat_ND.index_select(0, self.index_N.to(flat_ND.device))

    def unpack(self, hidden_BTD: Tensor, changed_ND: Tensor) -> Tensor:
        """``hidden_BTD`` with its real positions changed."""
        if self.index_N is None:
            return changed_ND.view(hidden_BTD.shape)
        flat_D = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        return flat_D.index_copy(0, self.index_N.to(flat_D.device), changed_ND).view(hidden_BTD.shape)

    def spread(self, values_N: Tensor) -> Tensor:
        """Values of packed rows as (B, T), NaN at padding."""
        batch, length = self.shape or (1, values_N.shape[0])
        if self.index_N is None:
            return values_N.reshape(batch, length)
        flat = values_N.new_full((batch * length,), torch.nan)
        return flat.index_copy(0, self.index_N.to(flat.device), values_N).view(batch, length)

    def place(self, row: int) -> tuple[int, int]:
        """Sequence and position, padding counted, of a packed row of the forward under way."""
        _, length = self.shape or (1, 1)
        index = row if self.index_N is None else int(self.index_N[row])
        before = 0
        if self.rows is not None:
            before = self.rows.num_positions
        elif self.cache is not None:
            before = max((cached_positions(self.cache) or length) - length, 0)
        return index // length, before + index % length

    def commit(self) -> None:
        """The forward came to its end: the rows stay."""
        if self.rows is not None and self.shape is not None:
            self.rows.advance(self.shape[1], self.real_BT, self.counts)

    def give_up(self) -> None:
        """The forward failed: what it added goes."""
        if self.rows is not None:
            self.rows.rewind()

    def give_up_all(self) -> None:
        """The same after the model's layers have run to the end: the model's cache goes back too."""
        self.give_up()
        if self.mark is not None and self.shape is not None:
            is_back = self.mark.rewind(self.shape[1])
            if self.rows is not None:
                self.rows.is_spoiled = not is_back

    def release(self) -> None:
        """Let go of the caller's tensors and caches; the measures stay."""
        self.cache = self.rows = self.mark = self._mask = None
        self.sums_N = {}

    def _real(self, batch: int, length: int) -> Tensor | None:
        """(B, T) true where a position is no padding, or None where all are real."""
        mask = self._mask
        if isinstance(mask, Mapping):
            mask = mask.get("full_attention", next(iter(mask.values()), None))
        if mask is None:
            return None
        if mask.dim() == 2 and mask.shape[0] == batch and mask.shape[1] >= length:
            real_BT = mask[:, mask.shape[1] - length :] != 0
        elif mask.dim() == 4 and mask.shape[2] == length:
            # A position sees at least itself unless it is padding.
            own_BT = mask[:, 0].diagonal(self._key_offset, 1, 2)
            real_BT = (own_BT if own_BT.dtype == torch.bool else own_BT == 0).expand(batch, length)
        else:
            raise FusionShapeError(
                f"attention_mask: got {tuple(mask.shape)} with {batch} sequences of {length} new positions, "
                f"expected ({batch}, {length} or more)"
            )
        return None if bool(real_BT.all()) else real_BT


def _key_offset(attention_mask: Any, cache: Cache | None) -> int:
    """The key of a four-dimensional mask that is the first new position itself."""
    if cache is None or attention_mask is None or getattr(attention_mask, "ndim", 4) == 2:
        return 0
    seen = cached_positions(cache) or 0
    return seen - int(cache.get_mask_sizes(1, 0)[1])
