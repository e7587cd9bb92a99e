"""One fusion point: into the fusion width, through a strategy, back into the receiving shards.

Letters: T packed rows, S shards, D a shard's width, F fusion width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid_fusion.context import FusionContext
from braid_fusion.errors import FusionShapeError
from braid_fusion.initialisation import linear, matching_linear
from braid_fusion.injection import make_injection
from braid_fusion.plan import BraidPlan, PlanPoint
from braid_fusion.strategies.base import Fused, FusionStrategy, fuse_with
from braid_fusion.strategies.registry import make_strategy

NORM_EPSILON = 1e-6


@dataclass(slots=True)
class PointOutput:
    """``states[s]`` is (T, D_s), injected already; None for a shard that receives nothing.

    ``metrics`` are scalar tensors, with gradients where the states have them: ``weight/<shard>`` (share of
    that shard in the fused state), ``router_entropy`` (of these shares, in nats), ``gate/<shard>`` and
    ``update/<shard>`` (size of the change relative to the receiver's state). Empty unless wanted.
    """

    states: list[Tensor | None]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class FusionPoint(nn.Module):
    """The modules of one `PlanPoint`. ``strategy`` may be exchanged for any that takes a list of states.

    Besides the strategy's own options, every point takes ``cross`` (default true). False cuts what passes
    between the shards: for each receiver, all other shards' states are zeros. That is the control which tells
    what shards gain from each other, as against from trained modules alone.
    """

    def __init__(self, plan: BraidPlan, point: PlanPoint, generator: Generator | None) -> None:
        super().__init__()
        self.shard_names = [shard.name for shard in plan.shards]
        self.receivers = point.receivers or tuple(range(len(plan.shards)))
        self.normalises = point.injection != "replace"
        options = dict(point.options)
        self.cross = bool(options.pop("cross", True))
        widths = [shard.width for shard in plan.shards]
        self.inputs = nn.ModuleList(
            linear(width, point.fusion_width, generator)
            if self.normalises
            else matching_linear(width, point.fusion_width, generator)
            for width in widths
        )
        self.strategy = make_strategy(
            point.strategy,
            len(widths),
            point.fusion_width,
            options,
            receivers=self.receivers,
            anchor=plan.anchor,
            generator=generator,
        )
        self.outputs = nn.ModuleList(
            make_injection(point.injection, point.fusion_width, widths[r], generator) for r in self.receivers
        )

    @property
    def keeps_rows(self) -> bool:
        """Whether the strategy needs caches where sequences come in pieces."""
        return isinstance(self.strategy, FusionStrategy) and self.strategy.keeps_rows

    def forward(self, states_TD: Sequence[Tensor], context: FusionContext) -> PointOutput:
        """Exchange states: one (T, D_s) per shard, any float dtype, rows as the context says.

        Raises: FusionShapeError, naming shard, what it got and what was expected.
        """
        self._check(states_TD, context)
        inputs_TF = [self._enter(shard, state_TD) for shard, state_TD in enumerate(states_TD)]
        fused = (
            fuse_with(self.strategy, inputs_TF, context)
            if self.cross
            else self._without_cross(inputs_TF, context)
        )
        shared = isinstance(fused.states, Tensor)
        injected: list[Tensor | None] = [None] * len(states_TD)
        metrics = self._weight_metrics(fused) if context.want_metrics else {}
        for index, receiver in enumerate(self.receivers):
            fused_TF = fused.states if shared else fused.states[index]
            before_TD = states_TD[receiver]
            after_TD, gate_T1 = self.outputs[index](before_TD, fused_TF, inputs_TF[receiver])
            injected[receiver] = after_TD
            if context.want_metrics:
                name = self.shard_names[receiver]
                if gate_T1 is not None:
                    metrics[f"gate/{name}"] = gate_T1.mean()
                metrics[f"update/{name}"] = relative_change(before_TD, after_TD)
        return PointOutput(injected, metrics)

    def _enter(self, shard: int, state_TD: Tensor) -> Tensor:
        project = cast(nn.Linear, self.inputs[shard])
        state_TD = state_TD.to(project.weight.dtype)
        if self.normalises:
            state_TD = functional.rms_norm(state_TD, state_TD.shape[-1:], eps=NORM_EPSILON)
        entered_TF: Tensor = project(state_TD)
        return entered_TF

    def _without_cross(self, inputs_TF: list[Tensor], context: FusionContext) -> Fused:
        alone, last = [], Fused(inputs_TF[0])
        for index, receiver in enumerate(self.receivers):
            only_own_TF = [x if s == receiver else torch.zeros_like(x) for s, x in enumerate(inputs_TF)]
            last = fuse_with(self.strategy, only_own_TF, context.part(index))
            alone.append(last.states if isinstance(last.states, Tensor) else last.states[index])
        return Fused(alone, last.weights_TS, last.metrics)

    def _weight_metrics(self, fused: Fused) -> dict[str, Tensor]:
        metrics = dict(fused.metrics)
        if fused.weights_TS is not None and fused.weights_TS.shape[0] > 0:
            for name, weight in zip(self.shard_names, fused.weights_TS.mean(0).unbind(), strict=True):
                metrics[f"weight/{name}"] = weight
            metrics["router_entropy"] = entropy(fused.weights_TS).mean()
        return metrics

    def _check(self, states_TD: Sequence[Tensor], context: FusionContext) -> None:
        if len(states_TD) != len(self.shard_names):
            raise FusionShapeError(
                f"got {len(states_TD)} states, expected one per shard: {len(self.shard_names)}"
            )
        num_rows = context.num_rows
        for shard, state_TD in enumerate(states_TD):
            expected = (num_rows, self.inputs[shard].in_features)
            if state_TD.shape != expected or not state_TD.is_floating_point():
                raise FusionShapeError(
                    f"state of shard {self.shard_names[shard]!r}: "
                    f"got {state_TD.dtype} {tuple(state_TD.shape)}, expected floats {expected}"
                )


def entropy(weights: Tensor) -> Tensor:
    """In nats over the last dimension; zero weights count as zero."""
    entropies: Tensor = torch.special.entr(weights).sum(-1)
    return entropies


def relative_change(before_TD: Tensor, after_TD: Tensor) -> Tensor:
    """‖after − before‖ / ‖before‖ over all rows."""
    dtype = torch.promote_types(before_TD.dtype, torch.float32)
    before_TD, after_TD = before_TD.to(dtype), after_TD.to(dtype)
    change: Tensor = torch.linalg.norm(after_TD - before_TD)
    size: Tensor = torch.linalg.norm(before_TD)
    return change / size.clamp_min(1e-12)
