"""How states are fused: each strategy in a file of its own, found by name through the registry."""

from __future__ import annotations

from braid_fusion.strategies.attention import AttentionFusion
from braid_fusion.strategies.base import Fused, FusionStrategy, fuse_with
from braid_fusion.strategies.mlp import MlpFusion
from braid_fusion.strategies.registry import (
    make_strategy,
    place_points,
    register_strategy,
    strategy_names,
)
from braid_fusion.strategies.resonance import ResonanceFusion
from braid_fusion.strategies.router import RouterFusion
from braid_fusion.strategies.stitch import StitchFusion
from braid_fusion.strategies.weighted import WeightedFusion

# The names that the braiding guide uses.
FusionLayer = FusionStrategy
LearnedWeightedFusion = WeightedFusion

__all__ = [
    "AttentionFusion",
    "Fused",
    "FusionLayer",
    "FusionStrategy",
    "LearnedWeightedFusion",
    "MlpFusion",
    "ResonanceFusion",
    "RouterFusion",
    "StitchFusion",
    "WeightedFusion",
    "fuse_with",
    "make_strategy",
    "place_points",
    "register_strategy",
    "strategy_names",
]
