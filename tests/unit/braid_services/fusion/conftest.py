"""A plan of two shards with four fusion points, and folders of its trained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from braid_fusion.plan import BraidPlan, PlanPoint, PlanReadout, PlanShard
from braid_fusion.stack import FusionStack
from braid_fusion.weights import save_stack

WIDTHS = (6, 8)


@pytest.fixture(scope="session")
def plan() -> BraidPlan:
    strategies = ("weighted", "attention", "router", "resonance")
    return BraidPlan(
        shards=(PlanShard("code", 6, 6, 20, "m0", "t"), PlanShard("prose", 8, 8, 20, "m1", "t")),
        anchor=0,
        points=tuple(
            PlanPoint(str(i), (i, i), name, 4, receivers=(0,) if name == "router" else (0, 1))
            for i, name in enumerate(strategies, start=1)
        ),
        readout=PlanReadout("gate"),
    )


def trained_stack(plan: BraidPlan, seed: int) -> FusionStack:
    stack = FusionStack(plan)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stack.parameters():
            # As far as training moves them: far off, what a resonance layer computes enlarges rounding.
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return stack


@pytest.fixture
def weights_dir(plan: BraidPlan, tmp_path: Path) -> Path:
    """Two versions, of which ``second`` is the newer."""
    for seed, version in enumerate(("first", "second")):
        save_stack(trained_stack(plan, seed), tmp_path / "weights" / version, {"seed": seed})
    return tmp_path / "weights"


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[Tensor]]:
    def draw(num_rows: int, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1000 + seed)
        return [torch.randn(num_rows, width, generator=generator) for width in WIDTHS]

    return draw
