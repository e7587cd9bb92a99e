"""The fusion points of a braid, as the braiding guide handles them: by layer, and exchangeable."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from braid_fusion.point import FusionPoint


class FusionModules(nn.ModuleDict):
    """A `ModuleDict` of `FusionPoint` by name, which is the anchor's layer index: ``fusion_modules["10"]``.

    Assigning a module that takes a list of states (as all strategies do) exchanges what fuses at that layer,
    or adds a point there; the maps from and to the shards' widths stay the point's own.
    """

    def __init__(self, points: nn.ModuleDict, exchange: Callable[[str, nn.Module], None]) -> None:
        super().__init__()
        self._exchange = exchange
        for name, point in points.items():
            super().__setitem__(name, point)

    def __setitem__(self, key: str, module: nn.Module) -> None:
        if isinstance(module, FusionPoint):
            super().__setitem__(key, module)
        else:
            self._exchange(key, module)
