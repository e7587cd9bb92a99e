"""What every plan must hold before modules are built from it. Strategies check their own options."""

from __future__ import annotations

from torch import nn

from braid_fusion.errors import PlanError
from braid_fusion.injection import INJECTIONS
from braid_fusion.plan import BraidPlan, PlanPoint

# Names that a ModuleDict cannot hold as keys, because they are attributes of it.
_RESERVED = frozenset(dir(nn.ModuleDict()))


def check_plan(plan: BraidPlan) -> None:
    """Raises: PlanError, naming the field, what it got and what is allowed."""
    if not plan.shards:
        raise PlanError("shards: got none, expected at least one")
    _check_unique("shards", [shard.name for shard in plan.shards])
    for shard in plan.shards:
        if shard.width < 1 or shard.num_layers < 1:
            raise PlanError(
                f"shard {shard.name!r}: got width {shard.width} and {shard.num_layers} layers, "
                "expected positive numbers"
            )
    if not 0 <= plan.anchor < len(plan.shards):
        raise PlanError(f"anchor: got index {plan.anchor}, expected one below {len(plan.shards)}")
    _check_unique("points", [point.name for point in plan.points])
    for point in plan.points:
        _check_point(plan, point)
    for shard_index, shard in enumerate(plan.shards):
        layers = [point.layers[shard_index] for point in plan.points]
        if layers != sorted(layers):
            raise PlanError(
                f"points: got layers {layers} of shard {shard.name!r}, expected them in order of depth"
            )


def _check_point(plan: BraidPlan, point: PlanPoint) -> None:
    where = f"point {point.name!r}"
    if not point.name or "." in point.name or point.name in _RESERVED:
        raise PlanError(
            f"{where}: expected a name that is not empty, has no dot and is no attribute of a ModuleDict"
        )
    if len(point.layers) != len(plan.shards):
        raise PlanError(f"{where}: layers: got {point.layers}, expected one per shard ({len(plan.shards)})")
    for layer, shard in zip(point.layers, plan.shards, strict=True):
        if not 0 <= layer <= shard.num_layers:
            raise PlanError(
                f"{where}: layer of {shard.name!r}: got {layer}, expected 0 to {shard.num_layers}"
            )
    if point.fusion_width < 1:
        raise PlanError(f"{where}: fusion_width: got {point.fusion_width}, expected at least 1")
    if point.injection not in INJECTIONS:
        raise PlanError(
            f"{where}: injection: got {point.injection!r}, expected one of {', '.join(INJECTIONS)}"
        )
    if len(set(point.receivers)) != len(point.receivers) or not all(
        0 <= receiver < len(plan.shards) for receiver in point.receivers
    ):
        raise PlanError(
            f"{where}: receivers: got {point.receivers}, expected different indices below {len(plan.shards)}"
        )


def _check_unique(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanError(
            f"{what}: got the names {', '.join(map(repr, twice))} more than once, expected different ones"
        )
