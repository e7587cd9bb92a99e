"""All trainable modules of one braid: its fusion points and its readout.

Letters: T packed rows, R logit rows, S shards, D a shard's width, N features per shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from braid_fusion.context import FusionContext
from braid_fusion.errors import FusionShapeError, PlanError
from braid_fusion.plan import BraidPlan
from braid_fusion.plan_validation import check_plan
from braid_fusion.point import FusionPoint, PointOutput
from braid_fusion.readout import make_readout


class FusionStack(nn.Module):
    """Built from a plan, the same each time: all draws come from a generator seeded by ``plan.seed``.

    ``points`` are keyed by name, in the order of depth. Parameters are float32 on the CPU; `to` moves them.
    States may have another float dtype and come back in it.

    Raises: PlanError, naming what of the plan cannot be built.
    """

    def __init__(self, plan: BraidPlan) -> None:
        super().__init__()
        check_plan(plan)
        self.plan = plan
        generator = torch.Generator().manual_seed(plan.seed)
        self.points = nn.ModuleDict()
        for point in plan.points:
            try:
                self.points[point.name] = FusionPoint(plan, point, generator)
            except PlanError as error:
                raise PlanError(f"point {point.name!r}: {error}") from error
        self.readout = make_readout(plan, generator)
        self._point_names = tuple(point.name for point in plan.points)

    def point(self, which: str | int) -> FusionPoint:
        """A point by name or index. Raises: PlanError if there is none."""
        if isinstance(which, int):
            if not 0 <= which < len(self._point_names):
                raise PlanError(f"point: got index {which}, expected one below {len(self._point_names)}")
            which = self._point_names[which]
        elif which not in self._point_names:
            raise PlanError(f"point: got {which!r}, expected one of {', '.join(self._point_names)}")
        found = self.points[which]
        if not isinstance(found, FusionPoint):
            raise PlanError(f"point {which!r}: got a {type(found).__name__}, expected a FusionPoint")
        return found

    def fuse(self, point: str | int, states: Sequence[Tensor], context: FusionContext) -> PointOutput:
        """Exchange states at a point: one (T, D_s) per shard. Raises: FusionShapeError, PlanError."""
        output: PointOutput = self.point(point)(states, context)
        return output

    def read_out(self, hidden: Sequence[Tensor], features: Tensor | None = None) -> Tensor:
        """Logarithms of the mixing weights, (R, S), from the inputs of the heads, one (R, D_s) per shard, and
        the features of their logits (R, S, N), which `mixing.logit_features` makes.

        Raises: FusionShapeError.
        """
        widths = [shard.width for shard in self.plan.shards]
        shapes = [tuple(state.shape) for state in hidden]
        if not hidden or shapes != [(hidden[0].shape[0], width) for width in widths]:
            raise FusionShapeError(f"readout: got states {shapes}, expected (R, width) with widths {widths}")
        log_weights_RS: Tensor = self.readout(hidden, features)
        return log_weights_RS

    def num_parameters(self) -> int:
        """How many numbers can be trained."""
        return sum(parameter.numel() for parameter in self.parameters())
