"""The rows that grafted layers keep, carried by the model's own key-value cache. Knows no layer and no model.

They stand behind the model's layers in ``cache.layers``, as one more. So whatever is done to the cache is done to
them too: reordered for beams, cropped, repeated, copied, reset, and freed with it.

Letters: B sequences, T positions of one call, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DummyLayer, EncoderDecoderCache

from braid_fusion.errors import FusionShapeError, GraftCacheError
from braid_fusion.row_cache import RowCache

_CACHE_NAMES = ("past_key_values", "cache_params")


class GraftRows(DummyLayer):  # type: ignore[misc]
    """One `RowCache` per sequence of the batch, and which positions of the batch were padding.

    ``owner`` is the number of the wrapper whose layers made the rows. ``lengths`` are rows per sequence,
    ``num_positions`` those of the batch, padding included. To transformers it is a layer without keys.
    """

    # As the class above has it: of a cache of fixed size whose layers don't all say so, transformers believes that a
    # step without padding needs no mask, and the step then attends to the places that are not filled yet.
    is_compileable = True

    def __init__(self, owner: int) -> None:
        super().__init__()
        self.owner = owner
        self.is_spoiled = False
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self.sequences: list[RowCache] = []
        self.lengths: list[int] = []
        self.num_positions = 0
        self._pieces: list[
            tuple[int, Tensor | None]
        ] = []  # positions and, where some are padding, (B, T) which not
        self.is_spoiled = False

    def expect(self, batch: int) -> None:
        """Make room for the sequences of a first call. Raises: FusionShapeError if there are others already."""
        if not self.sequences:
            self.sequences = [RowCache() for _ in range(batch)]
            self.lengths = [0] * batch
        elif len(self.sequences) != batch:
            raise FusionShapeError(
                f"past_key_values: got a batch of {batch}, expected {len(self.sequences)} as the cache holds"
            )

    def advance(self, num_positions: int, real_BT: Tensor | None, counts: Sequence[int]) -> None:
        """A call is over: its ``counts`` rows per sequence are there to stay."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.num_positions += num_positions
        if real_BT is None and self._pieces and self._pieces[-1][1] is None:
            num_positions += self._pieces.pop()[0]
        self._pieces.append((num_positions, real_BT))

    def rewind(self) -> None:
        """A call was given up: its rows go."""
        for rows, length in zip(self.sequences, self.lengths, strict=True):
            rows.crop(length)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last positions; transformers gives their number as a negative one."""
        left = min(abs(tokens_to_remove), self.num_positions)
        self.num_positions -= left
        while left:
            width, real_BT = self._pieces.pop()
            taken = min(width, left)
            left -= taken
            if real_BT is None:
                self.lengths = [length - taken for length in self.lengths]
            else:
                gone = real_BT[:, width - taken :].sum(1).tolist()
                self.lengths = [length - count for length, count in zip(self.lengths, gone, strict=True)]
                real_BT = real_BT[:, : width - taken]
            if width > taken:
                self._pieces.append((width - taken, real_BT))
        self.rewind()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these sequences, some of them more than once."""
        self._select(beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these sequences alone."""
        self._select(_numbers(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Go on with each sequence ``repeats`` times."""
        self._select([index for index in range(len(self.sequences)) for _ in range(repeats)])

    def num_bytes(self) -> int:
        """Bytes that the rows take, spare room included."""
        return sum(rows.num_bytes() for rows in self.sequences)

    def _select(self, indices: list[int]) -> None:
        if not self.sequences:
            return
        taken: set[int] = set()
        sequences = []
        for index in indices:  # buffers are written in place: only one of the twins may have the original
            rows = self.sequences[index]
            sequences.append(rows.copy() if index in taken else rows)
            taken.add(index)
        self.sequences = sequences
        self.lengths = [self.lengths[index] for index in indices]
        self._pieces = [
            (width, None if real_BT is None else real_BT[indices]) for width, real_BT in self._pieces
        ]


def _numbers(indices: Tensor) -> list[int]:
    chosen: list[int] = (indices.nonzero().flatten() if indices.dtype == torch.bool else indices).tolist()
    return chosen


def cache_in(values: Any) -> Cache | None:
    """The model's cache among arguments or outputs, whatever it is called there, or None."""
    if isinstance(values, dict):
        found = next((values[name] for name in _CACHE_NAMES if values.get(name) is not None), None)
    else:
        found = next((value for value in values if isinstance(value, Cache)), None)
    if isinstance(found, EncoderDecoderCache):
        return found.self_attention_cache
    return found if isinstance(found, Cache) else None


def rows_of(cache: Cache, owner: int) -> GraftRows:
    """The rows that a cache carries for this owner, or new ones for an empty cache.

    Raises: GraftCacheError if the cache was filled without them, or by another wrapper.
    """
    rows = next((layer for layer in reversed(cache.layers) if isinstance(layer, GraftRows)), None)
    seen = cached_positions(cache)
    if rows is None:
        if seen:
            raise GraftCacheError(
                f"past_key_values: got a cache of {seen} positions without the rows of the grafted layers, expected "
                "an empty one or one that this wrapper filled (outside training mode)"
            )
        return GraftRows(owner)
    if rows.owner != owner:
        raise GraftCacheError(
            "past_key_values: got a cache that another wrapper filled, expected this one's own"
        )
    if rows.is_spoiled or seen not in (None, rows.num_positions):
        raise GraftCacheError(
            f"past_key_values: got {seen} positions of keys with grafted rows of {rows.num_positions}, "
            "expected as many: a call that failed left this cache behind, or the bare model went on with it"
        )
    return rows


def cached_positions(cache: Cache) -> int | None:
    """How many positions a cache holds; None where it counts none, as those of recurrent models."""
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return None
