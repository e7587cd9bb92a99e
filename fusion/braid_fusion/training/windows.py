"""Batches of token windows from one long text. Knows neither tokenizer nor model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class TokenWindows:
    """Endless batches of windows that together cover the text once per epoch, in a new order and from a new
    offset each time.

    Args:
        tokens: (N,) integer ids, documents one after the other.
        length: tokens per window; one more is given, so that inputs and targets can be cut from it.
        seed: of the order; the same seed gives the same batches.

    Raises: ValueError if the text is shorter than one window.
    """

    def __init__(self, tokens: Tensor, length: int, batch_size: int, seed: int = 0) -> None:
        if tokens.ndim != 1 or tokens.numel() < length + 1:
            raise ValueError(f"tokens: got shape {tuple(tokens.shape)}, expected at least ({length + 1},)")
        if length < 1 or batch_size < 1:
            raise ValueError(f"got length {length} and batch_size {batch_size}, expected at least 1 each")
        self.tokens = tokens
        self.length = length
        self.batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Tensor]:
        """Yields (batch_size, length + 1) int64."""
        offsets = torch.arange(self.length + 1)
        pending = torch.empty(0, dtype=torch.int64)
        while True:
            while pending.numel() < self.batch_size:
                pending = torch.cat([pending, self._epoch()])
            starts, pending = pending[: self.batch_size], pending[self.batch_size :]
            yield self.tokens[starts[:, None] + offsets].to(torch.int64)

    def _epoch(self) -> Tensor:
        last_start = self.tokens.numel() - self.length - 1
        phase = int(torch.randint(min(self.length, last_start + 1), (), generator=self._generator))
        starts = torch.arange(phase, last_start + 1, self.length)
        return starts[torch.randperm(starts.numel(), generator=self._generator)]
