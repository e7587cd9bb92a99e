"""An order of numbers that starts anew each epoch, and can go on from anywhere in it. Knows not what is numbered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor


@runtime_checkable
class ResumableSource(Protocol):
    """Batches whose position can be stored and taken up again, by an equal source in another process."""

    def state_dict(self) -> dict[str, Any]:
        """Where the source is: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises: CheckpointMismatchError if the state is another source's."""
        ...


class EpochOrder:
    """Endless numbers, an epoch's order after the other.

    Args:
        draw: an epoch's numbers, (N,) with N ≥ 1, drawn from the generator given and nothing else.
        seed: the same seed gives the same numbers.
    """

    def __init__(self, draw: Callable[[Generator], Tensor], seed: int) -> None:
        self._draw = draw
        self._generator = torch.Generator().manual_seed(seed)
        self._epoch_start = self._generator.get_state()
        self._numbers = torch.empty(0, dtype=torch.int64)  # the first epoch is drawn on first use
        self._taken = 0

    def take(self, count: int) -> Tensor:
        """The next (count,) numbers, across the ends of epochs."""
        parts = []
        while count:
            if self._taken == self._numbers.numel():
                self._begin_epoch()
            numbers = self._numbers[self._taken : self._taken + count]
            self._taken += numbers.numel()
            count -= numbers.numel()
            parts.append(numbers)
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """The generator as it was when the epoch began, and how many of its numbers are taken."""
        return {"epoch_start": self._epoch_start.clone(), "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another order with the same ``draw`` was."""
        self._generator.set_state(state["epoch_start"])
        self._begin_epoch()
        self._taken = int(state["taken"])

    def _begin_epoch(self) -> None:
        self._epoch_start = self._generator.get_state()
        self._numbers = self._draw(self._generator)
        self._taken = 0
