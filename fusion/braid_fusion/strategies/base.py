"""What a fusion strategy is. Knows no particular strategy.

Letters: T packed rows, S shards, F fusion width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from braid_fusion.context import FusionContext
from braid_fusion.plan import PlanPoint


@dataclass(slots=True)
class Fused:
    """What a strategy returns: ``states`` is one (T, F) tensor for all receivers, or one per receiver.

    ``weights_TS`` says how much of each shard went into each row, where the strategy knows; ``metrics`` is
    whatever else is worth watching, and ``row_metrics`` the same row by row, (T,) each, in the graph. All only
    when the context wants metrics.
    """

    states: Tensor | Sequence[Tensor]
    weights_TS: Tensor | None = None  # noqa: N815 - shape letters
    metrics: dict[str, Tensor] = field(default_factory=dict)
    row_metrics: dict[str, Tensor] = field(default_factory=dict)


class FusionStrategy(nn.Module):
    """Fuses one state per shard, all in the fusion width.

    Two ways to write one. The short way overrides `forward(hidden_states)`: a list of S tensors (..., F) in
    the order of the shards to one (..., F), or one per receiver. Rows of several sequences come packed, so
    such a class must work row by row. The long way overrides `fuse`, which also gets the context:
    which row stands where in which sequence, and what those sequences keep from earlier calls.

    It is built by `make_strategy` as ``cls(num_models, hidden_dim, **options)``.
    """

    keeps_rows: ClassVar[bool] = False
    """Whether it reads earlier rows of a sequence, and so needs caches where sequences come in pieces."""

    aligns_itself: ClassVar[bool] = False
    """Whether `fuse` reads `FusionContext.alignment`: each shard's states then come in its own rows, and so do its
    receivers' results. Otherwise, where shards have different tokenizers, it is called once for each lane that
    receives, with all shards' states already brought to that lane's rows (zeros where nothing may be seen yet)."""

    @classmethod
    def in_plan(cls, point: PlanPoint, points_after: int, num_shards: int, anchor: int) -> PlanPoint:
        """The point as a plan is to state it: options that depend on the point's place, made explicit.

        Called once while a plan is made. ``points_after`` counts the points of this class behind it; empty
        ``receivers`` mean that the configuration names none. ``anchor`` is a shard's index.
        """
        return point

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
        """The rows are taken for one whole sequence, packed along the first dimension."""
        if type(self).fuse is FusionStrategy.fuse:
            raise NotImplementedError(f"{type(self).__name__} overrides neither forward nor fuse")
        return self.fuse(
            hidden_states, FusionContext.whole([hidden_states[0].shape[0]], want_metrics=False)
        ).states

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
        """Fuse the rows of one call: S tensors (T, F) to `Fused`."""
        return Fused(self(list(states_TF)))


def fuse_with(strategy: nn.Module, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
    """Run a strategy, or any module that takes the list of states."""
    if isinstance(strategy, FusionStrategy):
        return strategy.fuse(states_TF, context)
    return Fused(strategy(list(states_TF)))
