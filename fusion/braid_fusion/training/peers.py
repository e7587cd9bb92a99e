"""Workers that train the same module on different batches: what they tell each other. Knows no step and no schedule.

Their runs are compared once, at the start. All of them begin with the first one's parameters and take the same
updates, from the sum of all gradients, so they stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Peers(Protocol):
    """One worker's view of all of them. Every call is made by all, in the same order."""

    @property
    def rank(self) -> int:
        """This worker's number, from 0. The first one writes log and checkpoints, and evaluates."""

    @property
    def count(self) -> int:
        """How many there are."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all workers into each tensor, in place; bit for bit the same for all."""

    def from_first(self, value: Any) -> Any:
        """What the first worker gives; what the others give is passed over."""

    def from_all(self, value: Any) -> list[Any]:
        """What each worker gives, in their order."""


class NoPeers:
    """One worker alone."""

    rank, count = 0, 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """As they are."""

    def from_first(self, value: Any) -> Any:
        """As it is."""
        return value

    def from_all(self, value: Any) -> list[Any]:
        """That alone."""
        return [value]


class ProcessPeers:
    """The processes of torch's default process group, which must be there. Tensors are on the group's device."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.count = torch.distributed.get_world_size()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """In one message."""
        flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def from_first(self, value: Any) -> Any:
        """Anything that pickle can carry between processes of one program."""
        carried = [value]
        torch.distributed.broadcast_object_list(carried, src=0)
        return carried[0]

    def from_all(self, value: Any) -> list[Any]:
        """Anything that pickle can carry between processes of one program."""
        carried: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(carried, value)
        return carried
