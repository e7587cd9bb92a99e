"""What every plan must hold before modules are built from it. Strategies check their own options."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from braid_fusion.errors import PlanError
from braid_fusion.injection import INJECTIONS
from braid_fusion.plan import BraidPlan, PlanPoint
from braid_fusion.whole_number import whole_number

# Far above any model's, and low enough that a plan from outside can't ask for absurd tensors.
MAX_SHARDS, MAX_WIDTH, MAX_LAYERS, MAX_VOCAB = 64, 2**16, 2**12, 2**24

# Names that a ModuleDict cannot hold as keys, because they are attributes of it.
_RESERVED = frozenset(dir(nn.ModuleDict()))


def check_plan(plan: BraidPlan) -> None:
    """Raises: PlanError, naming the field, what it got and what is allowed."""
    if not plan.shards:
        raise PlanError("shards: got none, expected at least one")
    whole_number("shards: how many", len(plan.shards), 1, MAX_SHARDS)
    for shard in plan.shards:
        where = f"shard {shard.name!r}"
        for key in ("name", "model_hash", "tokenizer_hash"):
            _check_text(f"{where}: {key}", getattr(shard, key))
        whole_number(f"{where}: width", shard.width, 1, MAX_WIDTH)
        whole_number(f"{where}: num_layers", shard.num_layers, 1, MAX_LAYERS)
        whole_number(f"{where}: vocab_size", shard.vocab_size, 0, MAX_VOCAB)
    _check_unique("shards", [shard.name for shard in plan.shards])
    whole_number("anchor: index", plan.anchor, 0, len(plan.shards) - 1)
    whole_number("seed", plan.seed, -(2**63), 2**63 - 1)
    _check_options("readout", plan.readout.options)
    for point in plan.points:
        _check_text(f"point {point.name!r}: name", point.name)
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
        whole_number(f"{where}: layer of {shard.name!r}", layer, 0, shard.num_layers - 1)
    whole_number(f"{where}: fusion_width", point.fusion_width, 1, MAX_WIDTH)
    _check_text(f"{where}: strategy", point.strategy)
    _check_options(where, point.options)
    if point.injection not in INJECTIONS:
        raise PlanError(
            f"{where}: injection: got {point.injection!r}, expected one of {', '.join(INJECTIONS)}"
        )
    for receiver in point.receivers:
        whole_number(f"{where}: receivers", receiver, 0, len(plan.shards) - 1)
    if len(set(point.receivers)) != len(point.receivers):
        raise PlanError(
            f"{where}: receivers: got {point.receivers}, expected different indices below {len(plan.shards)}"
        )


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise PlanError(f"{what}: got {value!r}, expected text")


def _check_options(where: str, options: object) -> None:
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise PlanError(f"{where}: options: got {options!r}, expected values by name")


def _check_unique(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanError(
            f"{what}: got the names {', '.join(map(repr, twice))} more than once, expected different ones"
        )
