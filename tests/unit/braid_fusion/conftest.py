"""Plans and states to test fusion modules with: three shards of different widths and depths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from braid_fusion.plan import BraidPlan, PlanPoint, PlanReadout, PlanShard
from braid_fusion.stack import FusionStack

WIDTHS = (12, 8, 10)
NAMES = ("code", "prose.v2", "maths")


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., BraidPlan]:
    def make(
        strategy: str = "mlp",
        *,
        injection: str = "residual",
        options: dict[str, Any] | None = None,
        readout: str = "anchor",
        widths: Sequence[int] = WIDTHS,
        fusion_width: int = 8,
        receivers: tuple[int, ...] | None = None,
        num_points: int = 1,
        seed: int = 0,
    ) -> BraidPlan:
        count = len(widths)
        shards = tuple(
            PlanShard(NAMES[i], widths[i], 4 + i, 50, f"model-{i}", "tokenizer") for i in range(count)
        )
        points = tuple(
            PlanPoint(
                name=str(index + 1),
                layers=(index + 1,) * count,
                strategy=strategy,
                fusion_width=fusion_width,
                injection=injection,
                receivers=tuple(range(count)) if receivers is None else receivers,
                options=options or {},
            )
            for index in range(num_points)
        )
        return BraidPlan(shards, 0, points, PlanReadout(readout), seed)

    return make


@pytest.fixture(scope="session")
def states() -> Callable[..., list[Tensor]]:
    def draw(num_rows: int, widths: Sequence[int] = WIDTHS, seed: int = 1) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(num_rows, width, generator=generator) for width in widths]

    return draw


@pytest.fixture(scope="session")
def trained() -> Callable[[FusionStack], FusionStack]:
    """Any numbers in every parameter, so that nothing is zero as it is before training."""

    def fill(stack: FusionStack) -> FusionStack:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in stack.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise, alpha=0.3)
        return stack

    return fill
