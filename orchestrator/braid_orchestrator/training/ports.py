"""What training needs of a shard, whether in process or remote: spans forward and backward, many shards at once.

Calls return at once, and `Pending.result` waits, so that all shards work at the same time. Tensors are torch tensors
on the CPU. A call that can be repeated is, for as long as the shard has patience left; what is raised in the end are
`BraidError`s.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

from braid_rpc.cards import ShardCard
from braid_rpc.training import SpanInputs, SpanOutputs

ResultT = TypeVar("ResultT", covariant=True)


class Pending(Protocol[ResultT]):
    """A call under way."""

    def result(self) -> ResultT:
        """Wait for its end. Raises: BraidError."""


class TrainingShard(Protocol):
    """One base model, frozen."""

    @property
    def name(self) -> str:
        """The shard's name in this braid."""

    @property
    def card(self) -> ShardCard:
        """What the shard says about itself."""

    def tokenizer_json(self) -> str:
        """The shard's tokenizer in the format of the `tokenizers` library."""

    def forward(self, inputs: SpanInputs[Tensor], graph_id: str = "") -> Pending[SpanOutputs[Tensor]]:
        """Start one span. With a ``graph_id``, `backward` can follow."""

    def backward(
        self, graph_id: str, gradients: SpanOutputs[Tensor], inputs: SpanInputs[Tensor]
    ) -> Pending[Tensor]:
        """Start the way back through a span: the gradient (T, D) of the states that entered it. ``inputs`` are the
        span's, for a shard that has forgotten it."""

    def shutdown(self) -> None:
        """Release everything; the object is not used again."""
