"""What a point tells of single rows: of those asked for, in their order, to nobody else."""

from __future__ import annotations

import pytest
import torch
from telling import POINTS

from braid_fusion.context import FusionContext
from braid_fusion.plan import BraidPlan, PlanPoint, PlanShard
from braid_fusion.stack import FusionStack
from braid_rpc.errors import FrameError, InvalidRequestError
from braid_rpc.fusion_messages import row_metrics_of
from braid_rpc.steps import Segment
from braid_rpc.v1 import fusion_pb2
from braid_services.fusion.backend import FusionBackend

SEGMENTS = [Segment("s", 0, 5)]


@pytest.fixture
def stack() -> FusionStack:
    shards = tuple(PlanShard(name, 6, 4, 20, name, "t") for name in ("code", "prose"))
    return FusionStack(
        BraidPlan(shards, 0, (PlanPoint("1", (1, 1), POINTS[0].strategy, 4, receivers=(0, 1)),))
    )


def test_rows_are_told_of_in_the_order_in_which_they_were_asked_for(stack: FusionStack) -> None:
    states = [torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    with torch.no_grad():
        whole = stack.fuse(0, states, FusionContext.whole([5])).row_metrics["gate_coherence"]
    stream = FusionBackend.from_stack(stack).stream()
    stream.open(["s"])
    for step, rows in enumerate([(4,), (), (3, 1)]):
        told = stream.fuse(step, 0, SEGMENTS, states, metric_rows=rows).row_metrics
        assert told.keys() == ({"gate_coherence", "gate"} if rows else set())
        assert told.get("gate_coherence", []) == pytest.approx([float(whole[row]) for row in rows])
        stream.crop("s", 0)


def test_rows_that_are_not_there_are_refused(stack: FusionStack) -> None:
    stream = FusionBackend.from_stack(stack).stream()
    stream.open(["s"])
    states = [torch.zeros(5, 6), torch.zeros(5, 6)]
    for rows in ((5,), (-1, 2)):
        with pytest.raises(InvalidRequestError, match=r"metric_rows: got rows .*, expected 0 to 4"):
            stream.fuse(0, 0, SEGMENTS, states, metric_rows=rows)
    assert stream.fuse(0, 0, SEGMENTS, states, metric_rows=(0,)).row_metrics


def test_an_answer_of_another_number_of_rows_is_refused() -> None:
    fused = fusion_pb2.Fused()
    fused.row_metrics["gate"].values.extend([0.5, 0.25])
    assert row_metrics_of(fused, 2) == {"gate": (0.5, 0.25)}
    with pytest.raises(FrameError, match="got 2 values of 'gate', expected 1"):
        row_metrics_of(fused, 1)
