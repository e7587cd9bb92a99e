"""Padded batches into packed rows, and back. Differentiable on the way back.

Shapes: B texts, T tokens of the longest, R tokens of all texts, X whatever follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from braid_rpc.errors import InvalidRequestError, ShapeMismatchError


@dataclass(frozen=True, slots=True)
class PackedTexts:
    """The rows of a padded batch that are tokens: where they stand in it, flattened, and how many each text has."""

    token_ids_R: Tensor  # noqa: N815 - shape letters
    lengths: list[int]
    places_R: Tensor  # noqa: N815 - shape letters
    shape: tuple[int, int]

    def pad(self, rows_RX: Tensor) -> Tensor:
        """(R, X) as (B, T, X), with zeros for padding."""
        batch, longest = self.shape
        if rows_RX.shape[0] == batch * longest:
            return rows_RX.reshape(batch, longest, *rows_RX.shape[1:])
        padded = rows_RX.new_zeros(batch * longest, *rows_RX.shape[1:])
        places_R = self.places_R.to(rows_RX.device)
        return padded.index_copy(0, places_R, rows_RX).reshape(batch, longest, *rows_RX.shape[1:])


def pack(input_ids: Tensor, attention_mask: Tensor | None) -> PackedTexts:
    """Take the tokens out of (B, T) ids. Padding, on either side, is where the mask is 0.

    Raises: ShapeMismatchError; InvalidRequestError for a text without a token.
    """
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ShapeMismatchError(f"input_ids: got shape {tuple(input_ids.shape)}, expected (texts, tokens)")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        raise ShapeMismatchError(
            f"attention_mask: got shape {tuple(mask.shape)}, expected {tuple(input_ids.shape)} as input_ids"
        )
    lengths = [int(length) for length in (mask != 0).sum(1)]
    if min(lengths) < 1:
        raise InvalidRequestError(
            f"attention_mask: text {lengths.index(0)} has no token, expected at least one"
        )
    places_R = mask.reshape(-1).nonzero()[:, 0]
    token_ids_R = input_ids.reshape(-1)[places_R].to(torch.int64)
    return PackedTexts(token_ids_R, lengths, places_R, (input_ids.shape[0], input_ids.shape[1]))
