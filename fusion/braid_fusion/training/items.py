"""Batches of a dataset's items in a new order each epoch. Knows not what the items are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from braid_fusion.errors import TrainingDataError
from braid_fusion.training.epochs import EpochOrder
from braid_fusion.training.identity import check_same

ItemT_co = TypeVar("ItemT_co", covariant=True)
ItemT = TypeVar("ItemT")
BatchT = TypeVar("BatchT")


class Items(Protocol[ItemT_co]):
    """A dataset with numbered items, such as torch's map-style ones."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ItemT_co: ...


class ItemBatches(Generic[ItemT, BatchT]):
    """Endless batches that hold each item once per epoch. Iterating again goes on where it stopped, and `state_dict`
    says where that is. A batch may go over the end of an epoch.

    Args:
        collate: makes a batch of items.
        seed: of the order; the same seed gives the same batches.
        identity: plain values that tell this data from others in checkpoints, besides number of items and seed.

    Raises: TrainingDataError if there is no item.
    """

    def __init__(
        self,
        items: Items[ItemT],
        batch_size: int,
        collate: Callable[[Sequence[ItemT]], BatchT],
        seed: int = 0,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        if len(items) < 1 or batch_size < 1:
            raise TrainingDataError(
                f"got {len(items)} items and batch_size {batch_size}, expected at least 1 each"
            )
        self._items = items
        self._batch_size = batch_size
        self._collate = collate
        self._order = EpochOrder(self._epoch, seed)
        self._identity = {
            "kind": type(self).__name__,
            "num_items": len(items),
            "batch_size": batch_size,
            "seed": seed,
            **(identity or {}),
        }

    def __iter__(self) -> Iterator[BatchT]:
        while True:
            numbers = self._order.take(self._batch_size).tolist()
            yield self._collate([self._items[number] for number in numbers])

    def state_dict(self) -> dict[str, Any]:
        """The position, and what makes the source what it is."""
        return {"source": self._identity, "order": self._order.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position. Raises: CheckpointMismatchError if it is one in other data."""
        check_same("source of data", state["source"], self._identity)
        self._order.load_state_dict(state["order"])

    def _epoch(self, generator: Generator) -> Tensor:
        return torch.randperm(len(self._items), generator=generator)
