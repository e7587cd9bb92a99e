"""Gated linear maps from the experts into the hub, and from the hub back into the experts.

The hub is the braid's anchor, the experts are all other shards. Experts hear of each other through the hub alone.

Letters: T packed rows, S shards, F fusion width, L shards that a receiver hears, itself first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from braid_fusion.context import FusionContext
from braid_fusion.errors import PlanError
from braid_fusion.initialisation import linear, matching_linear
from braid_fusion.plan import PlanPoint
from braid_fusion.strategies.base import Fused, FusionStrategy
from braid_fusion.strategies.registry import register_strategy

DIRECTIONS = ("in", "out", "both", "alternate")


@register_strategy("stitch")
class StitchFusion(FusionStrategy):
    """fused_r = Σ_s softmax(G_r x_r)_s · V_rs x_s, over the receiver r itself and those that it hears.

    The stitch layers of "BTS: Harmonizing Specialized Experts into a Generalist LLM" (arXiv 2502.00075): the hub
    hears all experts, an expert hears the hub. The gate looks at the receiver's own state alone. Each V starts as
    the identity, so at first a receiver gets nearly the mean of itself and those it hears, in the fusion width.

    ``direction`` says who receives: ``in`` the hub, ``out`` the experts, ``both`` all of them. ``alternate`` is one
    of the first two by the point's place in the plan, the last point of this strategy leading into the hub; a
    module that was made outside a plan has no place, and takes it as ``both``.
    """

    def __init__(
        self,
        num_models: int,
        hidden_dim: int,
        direction: str = "alternate",
        receivers: Sequence[int] | None = None,
        anchor: int = 0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if num_models < 2:
            raise PlanError(f"stitch: got {num_models} shard, expected at least 2: a hub and its experts")
        if direction not in DIRECTIONS:
            raise PlanError(f"stitch: direction: got {direction!r}, expected one of {', '.join(DIRECTIONS)}")
        served = _served(direction, anchor, num_models)
        self.direction = direction
        self.receivers = served if receivers is None else tuple(receivers)
        if not set(self.receivers) <= set(served):
            raise PlanError(
                f"stitch: direction {direction!r}: got the receivers {self.receivers}, expected only {served} "
                f"(the hub is shard {anchor})"
            )
        self._num_shards = num_models
        experts = tuple(shard for shard in range(num_models) if shard != anchor)
        self.heard = tuple((r, *(experts if r == anchor else (anchor,))) for r in self.receivers)
        self.gates = nn.ModuleList(
            linear(hidden_dim, len(heard), generator, gain=0.1) for heard in self.heard
        )
        self.maps = nn.ModuleList(
            nn.ModuleList(matching_linear(hidden_dim, hidden_dim, generator) for _ in heard)
            for heard in self.heard
        )

    @classmethod
    def in_plan(cls, point: PlanPoint, points_after: int, num_shards: int, anchor: int) -> PlanPoint:
        """With its direction, and those that receive where the point names none."""
        direction = point.options.get("direction", "alternate")
        if direction not in DIRECTIONS:
            return point  # building it says what is wrong
        if direction == "alternate":
            direction = "out" if points_after % 2 else "in"
        options: Mapping[str, Any] = {**point.options, "direction": direction}
        return replace(
            point, options=options, receivers=point.receivers or _served(direction, anchor, num_shards)
        )

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
        """Returns one (T, F) per receiver."""
        fused, shares = [], []
        for heard, gate, maps in zip(self.heard, self.gates, self.maps, strict=True):
            weights_TL = gate(states_TF[heard[0]]).softmax(-1)
            columns = weights_TL.unsqueeze(-1).unbind(-2)
            fused_TF = columns[0] * maps[0](states_TF[heard[0]])  # type: ignore[index]
            for index, shard in enumerate(heard[1:], start=1):
                fused_TF = torch.addcmul(fused_TF, columns[index], maps[index](states_TF[shard]))  # type: ignore[index]
            fused.append(fused_TF)
            if context.want_metrics:
                share_TS = weights_TL.new_zeros(*weights_TL.shape[:-1], self._num_shards)
                shares.append(
                    share_TS.index_copy(-1, torch.tensor(heard, device=share_TS.device), weights_TL)
                )
        return Fused(fused, torch.stack(shares).mean(0) if shares else None)


def _served(direction: str, anchor: int, num_shards: int) -> tuple[int, ...]:
    """The shards whose states a direction changes."""
    if direction == "in":
        return (anchor,)
    experts = tuple(shard for shard in range(num_shards) if shard != anchor)
    return experts if direction == "out" else tuple(range(num_shards))
