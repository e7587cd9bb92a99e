"""Presets: what a braid of a certain kind begins with, where its configuration says nothing. Knows no models.

Why each is as it is stands in docs/fusion.md ("Presets").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DEPTHS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Preset:
    """``decides``: requests are decided one by one (`braiding.default: auto`) as soon as something can decide."""

    strategy: str
    readout: Literal["anchor", "mixture", "gate"]
    decides: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    injection: Literal["residual", "replace"] = "residual"


PRESETS: dict[str, Preset] = {
    "domain": Preset("mlp", "gate", decides=True),
    "size": Preset("stitch", "anchor", decides=True, options={"direction": "in"}),
    "training": Preset("weighted", "mixture", decides=False),
}


def depths_within(num_layers: int) -> tuple[float, ...]:
    """Those of `DEPTHS` that are different layers of an anchor with so many; of several at one layer the nearest."""
    nearest: dict[int, float] = {}
    for depth in DEPTHS:
        layer = min(max(round(depth * num_layers), 1), num_layers - 1)
        if layer not in nearest or abs(depth * num_layers - layer) < abs(nearest[layer] * num_layers - layer):
            nearest[layer] = depth
    return tuple(nearest.values())


def with_preset(settings: Mapping[str, Any], name: object) -> dict[str, Any]:
    """Settings of a braid, completed from the preset of that name. Whatever they say themselves stays: ``points`` and
    ``readout`` as a whole, ``braiding`` key by key. An unknown name changes nothing: validation tells it."""
    completed = dict(settings)
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        return completed
    point = {"strategy": preset.strategy, "injection": preset.injection, "options": dict(preset.options)}
    completed.setdefault("points", [{"at": depth, **point} for depth in DEPTHS])
    completed.setdefault("readout", {"kind": preset.readout})
    braiding = completed.get("braiding", {})
    if isinstance(braiding, Mapping) and preset.decides and braiding.get("decide") is not None:
        completed["braiding"] = {"default": "auto", **braiding}
    return completed
