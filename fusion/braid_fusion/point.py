"""One fusion point: into the fusion width, through a strategy, back into the receiving shards.

States are normalised on the way in (except for `replace`), so that shards of any scale weigh alike.

Letters: T packed rows, S shards, D a shard's width, F fusion width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid_fusion.context import FusionContext
from braid_fusion.errors import FusionShapeError, PlanError
from braid_fusion.gathering import aligns_itself, fuse_by_lane
from braid_fusion.initialisation import linear, matching_linear
from braid_fusion.injection import make_injection
from braid_fusion.plan import BraidPlan, PlanPoint
from braid_fusion.strategies.base import Fused, FusionStrategy, fuse_with
from braid_fusion.strategies.registry import make_strategy


@dataclass(slots=True)
class PointOutput:
    """``states[s]`` is (T, D_s), injected already; None for a shard that receives nothing.

    ``metrics`` are scalar tensors, with gradients where the states have them: ``weight/<shard>`` (share of
    that shard in the fused state), ``router_entropy`` (of these shares, in nats), ``gate/<shard>`` and
    ``update/<shard>`` (size of the change relative to the receiver's state). ``row_metrics`` are what the strategy
    tells row by row, (T,) each, T being the anchor's rows. Both empty unless wanted.
    """

    states: list[Tensor | None]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    row_metrics: dict[str, Tensor] = field(default_factory=dict)


class FusionPoint(nn.Module):
    """The modules of one `PlanPoint`. ``strategy`` may be exchanged for any that takes a list of states.

    Besides the strategy's own options, every point takes ``cross`` (default true). False cuts what passes
    between the shards: for each receiver, all other shards' states are zeros. ``"own"`` cuts it too, but puts the
    receiver's own states there, so that no part of a strategy idles. Those are the controls which tell what shards
    gain from each other, as against from trained modules alone. And ``dropout`` (default 0): the share
    of each entering state's numbers that are zeros in training (and the others larger accordingly), so that a small
    training set is not learned by heart.
    """

    def __init__(self, plan: BraidPlan, point: PlanPoint, generator: Generator | None) -> None:
        super().__init__()
        self.shard_names = tuple(shard.name for shard in plan.shards)
        self.widths = tuple(shard.width for shard in plan.shards)
        self.receivers = point.receivers or tuple(range(len(plan.shards)))
        self.normalises = point.injection != "replace"
        options = dict(point.options)
        self.cross = options.pop("cross", True)
        if not isinstance(self.cross, bool) and self.cross != "own":
            raise PlanError(f"cross: got {self.cross!r}, expected true, false or 'own'")
        self.dropout = _share("dropout", options.pop("dropout", 0.0))
        self.inputs = nn.ModuleList(
            linear(width, point.fusion_width, generator)
            if self.normalises
            else matching_linear(width, point.fusion_width, generator)
            for width in self.widths
        )
        self.strategy = make_strategy(
            point.strategy,
            len(self.widths),
            point.fusion_width,
            options,
            receivers=self.receivers,
            anchor=plan.anchor,
            generator=generator,
        )
        self.outputs = nn.ModuleList(
            make_injection(point.injection, point.fusion_width, self.widths[r], generator)
            for r in self.receivers
        )

    @property
    def keeps_rows(self) -> bool:
        """Whether the strategy needs caches where sequences come in pieces. Shards with different tokenizers always
        do: a row may look back at any earlier one."""
        return isinstance(self.strategy, FusionStrategy) and self.strategy.keeps_rows

    def forward(self, states_TD: Sequence[Tensor], context: FusionContext) -> PointOutput:
        """Exchange states: one (T, D_s) per shard, any float dtype, rows as the context says (where it has an
        alignment, T is that of the shard's lane).

        Raises: FusionShapeError, naming shard, what it got and what was expected.
        """
        self._check(states_TD, context)
        inputs_TF = [
            self._enter(state_TD, project) for state_TD, project in zip(states_TD, self.inputs, strict=True)
        ]
        if self.cross is not True:
            fused = self._without_cross(inputs_TF, context)
        elif context.alignment is None or aligns_itself(self.strategy):
            fused = fuse_with(self.strategy, inputs_TF, context)
        else:
            fused = fuse_by_lane(self.strategy, self.receivers, inputs_TF, context, context.alignment)
        states = fused.states
        fused_TF = [states] * len(self.receivers) if isinstance(states, Tensor) else states
        injected: list[Tensor | None] = [None] * len(states_TD)
        gates: list[Tensor | None] = []
        for receiver, inject, one_TF in zip(self.receivers, self.outputs, fused_TF, strict=True):
            injected[receiver], gate_T1 = inject(states_TD[receiver], one_TF, inputs_TF[receiver])
            gates.append(gate_T1)
        if not context.want_metrics:
            return PointOutput(injected)
        return PointOutput(injected, self._metrics(fused, states_TD, injected, gates), fused.row_metrics)

    def _enter(self, state_TD: Tensor, project: nn.Module) -> Tensor:
        state_TD = state_TD.to(project.weight.dtype)  # type: ignore[arg-type]
        if self.normalises:
            state_TD = functional.layer_norm(state_TD, state_TD.shape[-1:])
        state_TD = functional.dropout(state_TD, self.dropout, self.training)
        entered_TF: Tensor = project(state_TD)
        return entered_TF

    def _without_cross(self, inputs_TF: list[Tensor], context: FusionContext) -> Fused:
        alone, last, row_metrics = [], Fused(inputs_TF[0]), {}
        for index, receiver in enumerate(self.receivers):
            own_TF = inputs_TF[receiver]
            if not own_TF.shape[0]:  # its text lags behind the anchor's
                alone.append(own_TF)
                continue
            others_TF = own_TF if self.cross == "own" else torch.zeros_like(own_TF)
            only_own_TF = [own_TF if s == receiver else others_TF for s in range(len(inputs_TF))]
            lane = 0 if context.alignment is None else context.alignment.lane_of[receiver]
            last = fuse_with(self.strategy, only_own_TF, context.of_lane(lane).part(index))
            alone.append(last.states if isinstance(last.states, Tensor) else last.states[index])
            if lane == 0:
                row_metrics = last.row_metrics
        return Fused(alone, last.weights_TS, last.metrics, row_metrics)

    def _metrics(
        self,
        fused: Fused,
        before_TD: Sequence[Tensor],
        after_TD: Sequence[Tensor | None],
        gates: Sequence[Tensor | None],
    ) -> dict[str, Tensor]:
        metrics = dict(fused.metrics)
        if fused.weights_TS is not None and fused.weights_TS.shape[0] > 0:
            for name, weight in zip(self.shard_names, fused.weights_TS.mean(0).unbind(), strict=True):
                metrics[f"weight/{name}"] = weight
            metrics["router_entropy"] = entropy(fused.weights_TS).mean()
        for receiver, gate_T1 in zip(self.receivers, gates, strict=True):
            name, injected_TD = self.shard_names[receiver], after_TD[receiver]
            if not before_TD[receiver].shape[0]:  # the mean of nothing is no number
                continue
            if gate_T1 is not None:
                metrics[f"gate/{name}"] = gate_T1.mean()
            if injected_TD is not None:
                metrics[f"update/{name}"] = relative_change(before_TD[receiver], injected_TD)
        return metrics

    def _check(self, states_TD: Sequence[Tensor], context: FusionContext) -> None:
        if len(states_TD) != len(self.shard_names):
            raise FusionShapeError(
                f"got {len(states_TD)} states, expected one per shard: {len(self.shard_names)}"
            )
        for shard, state_TD in enumerate(states_TD):
            name, width, num_rows = self.shard_names[shard], self.widths[shard], context.rows_of_shard(shard)
            if state_TD.shape != (num_rows, width) or not state_TD.is_floating_point():
                raise FusionShapeError(
                    f"state of shard {name!r}: got {state_TD.dtype} {tuple(state_TD.shape)}, "
                    f"expected floats {(num_rows, width)}"
                )


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise PlanError(f"{name}: got {value!r}, expected a number from 0 to less than 1")
    return float(value)


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
