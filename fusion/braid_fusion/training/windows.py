"""Batches of token windows from one long text. Knows neither tokenizer nor model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from braid_fusion.errors import TrainingDataError
from braid_fusion.training.epochs import EpochOrder
from braid_fusion.training.identity import check_same, tokens_hash


class TokenWindows:
    """Endless batches of windows that together cover the text once per epoch, in a new order and from a new
    offset each time. Iterating again goes on where it stopped, and `state_dict` says where that is.

    Args:
        tokens: (N,) integer ids, documents one after the other.
        length: tokens per window; one more is given, so that inputs and targets can be cut from it.
        seed: of the order; the same seed gives the same batches.

    Raises: TrainingDataError if the text is shorter than one window.
    """

    def __init__(self, tokens: Tensor, length: int, batch_size: int, seed: int = 0) -> None:
        if tokens.ndim != 1 or tokens.numel() < length + 1:
            raise TrainingDataError(
                f"tokens: got shape {tuple(tokens.shape)}, expected at least ({length + 1},)"
            )
        if length < 1 or batch_size < 1:
            raise TrainingDataError(
                f"got length {length} and batch_size {batch_size}, expected at least 1 each"
            )
        self.tokens = tokens
        self.length = length
        self.batch_size = batch_size
        self._seed = seed
        self._order = EpochOrder(self._epoch, seed)

    def __iter__(self) -> Iterator[Tensor]:
        """Yields (batch_size, length + 1) int64."""
        offsets = torch.arange(self.length + 1)
        while True:
            starts = self._order.take(self.batch_size)
            yield self.tokens[starts[:, None] + offsets].to(torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what makes the source what it is."""
        return {"source": self._identity(), "order": self._order.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position. Raises: CheckpointMismatchError if it is one in other windows."""
        check_same("source of data", state["source"], self._identity())
        self._order.load_state_dict(state["order"])

    def _epoch(self, generator: Generator) -> Tensor:
        last_start = self.tokens.numel() - self.length - 1
        phase = int(torch.randint(min(self.length, last_start + 1), (), generator=generator))
        starts = torch.arange(phase, last_start + 1, self.length)
        return starts[torch.randperm(starts.numel(), generator=generator)]

    @cached_property
    def _tokens_hash(self) -> str:
        return tokens_hash(self.tokens)

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": type(self).__name__,
            "num_tokens": self.tokens.numel(),
            "tokens_sha256": self._tokens_hash,
            "length": self.length,
            "batch_size": self.batch_size,
            "seed": self._seed,
        }
