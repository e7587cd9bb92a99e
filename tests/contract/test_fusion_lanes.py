"""Fusion steps of shards with different tokenizers: however the rows come, they are fused as all at once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from braid_fusion import FusionLayer, register_strategy
from braid_fusion.alignment import Alignment, Weave
from braid_fusion.alignment.settling import SettlingText
from braid_fusion.alignment.weave import WovenLane, align
from braid_fusion.context import FusionContext
from braid_fusion.plan import BraidPlan, PlanPoint, PlanShard
from braid_fusion.stack import FusionStack
from braid_fusion.strategies.base import Fused
from braid_fusion.weights import save_stack
from braid_orchestrator.engine.local import LocalFusion
from braid_orchestrator.engine.ports import Fusion
from braid_orchestrator.engine.remote_fusion import RemoteFusion
from braid_rpc.errors import BraidError, InvalidRequestError
from braid_rpc.steps import Lane, Segment
from braid_services.fusion.backend import FusionBackend
from braid_services.fusion.main import serve_fusion

# Two orders of the same sums in float32. Resonance takes angles of small amplitudes, which magnify the last bit:
# 4.6e-6 at the 99th percentile of random steps, where the other strategies are at 2.5e-7.
TOLERANCE = 1e-5
RESONANCE_TOLERANCE = 1e-4
WIDTHS = (6, 8, 10, 6)
TOKENIZERS = ("t0", "t1", "t2", "t0")
LANE_OF = (0, 1, 2, 0)


@register_strategy("mean so far")
class MeanSoFar(FusionLayer):
    """A user's own that reads earlier rows, knows nothing of lanes, and names what it keeps as others might."""

    keeps_rows = True

    def __init__(self, num_models: int, hidden_dim: int) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(num_models * hidden_dim, hidden_dim)

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
        mixed_TF = self.mix(torch.cat(list(states_TF), dim=-1))
        parts = []
        for index, part in enumerate(torch.split(mixed_TF, [*context.row_counts])):
            rows = part if context.caches is None else context.caches[index].append("0", part)
            assert rows.shape[0] == context.positions[index] + context.row_counts[index]
            sums = rows.cumsum(0) / torch.arange(1, rows.shape[0] + 1)[:, None]
            parts.append(sums[rows.shape[0] - part.shape[0] :])
        return Fused(torch.cat(parts), None, {"mean": mixed_TF.mean()} if context.want_metrics else {})


POINTS = (
    PlanPoint("0", (1,) * 4, "attention", 8, receivers=(0, 1, 2, 3)),
    PlanPoint("1", (2,) * 4, "mlp", 8, receivers=(1, 2)),
    PlanPoint("2", (3,) * 4, "attention", 8, receivers=(0, 2), options={"cross": False}),
    PlanPoint("3", (4,) * 4, "mean so far", 8, injection="replace", receivers=(2, 0)),
    PlanPoint("4", (5,) * 4, "router", 8, receivers=(0, 1, 2, 3), options={"cross": False}),
    PlanPoint("5", (6,) * 4, "attention", 8, receivers=(1,)),
    PlanPoint("6", (7,) * 4, "mean so far", 8, receivers=(0, 1), options={"cross": False}),
    PlanPoint(
        "7",
        (8,) * 4,
        "resonance",
        8,
        receivers=(0, 1, 2),
        options={"components": ["prime", "quaternion", "kuramoto", "coherence_gate", "prsc", "smf"]},
    ),
)
PLAN = BraidPlan(
    tuple(
        PlanShard(f"s{i}", width, 9, 20, "m", tokenizer)
        for i, (width, tokenizer) in enumerate(zip(WIDTHS, TOKENIZERS, strict=True))
    ),
    0,
    POINTS,
)
VERSIONS = ("v0", "v1")


def shaken(seed: int) -> FusionStack:
    stack = FusionStack(PLAN)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return stack


STACKS = {version: shaken(seed) for seed, version in enumerate(VERSIONS)}


def any_weave(draw: random.Random, num_rows: int) -> Weave:
    """Lanes that lag, stand still and leap."""
    weave = Weave(())
    for _ in range(2):
        lane = WovenLane(SettlingText(None))  # type: ignore[arg-type]  # it never grows
        for t in range(num_rows):
            for _ in range(draw.choice([0, 0, 0, 1, 1, 4])):
                lane.token_ids.append(0)
                lane.level_with.append(draw.randint(max([-1, *lane.level_with[-1:]]), t))
            lane.counts.append(len(lane.token_ids))
            lane.pending.append("")
        weave.lanes.append(lane)
    return weave


class Session:
    """One session's states at every point, and what they are fused to all at once."""

    def __init__(self, name: str, version: str, seed: int) -> None:
        draw = random.Random(seed)
        self.name, self.version = name, version
        self.num_rows = draw.randint(1, 12)
        self.weave = any_weave(draw, self.num_rows)
        self.done = 0
        span = [(0, self.num_rows)]
        alignment = align([self.weave], span, LANE_OF)
        generator = torch.Generator().manual_seed(seed)
        self.states = [
            [
                torch.randn(alignment.of_shard(s).num_rows, width, generator=generator)
                for s, width in enumerate(WIDTHS)
            ]
            for _ in POINTS
        ]
        context = FusionContext.whole([self.num_rows], alignment=alignment)
        with torch.no_grad():
            self.expected = [
                STACKS[version].fuse(point, states, context).states
                for point, states in enumerate(self.states)
            ]

    def rows(self, shard: int, begin: int, end: int) -> slice:
        position, count = self.weave.rows(LANE_OF[shard], begin, end)
        return slice(position, position + count)


def lanes_of(parts: Sequence[tuple[Session, int, int]]) -> tuple[Alignment, tuple[Lane, ...]]:
    spans = [(begin, end) for _, begin, end in parts]
    alignment = align([session.weave for session, _, _ in parts], spans, LANE_OF)
    lanes = tuple(
        Lane(
            tuple(
                Segment(session.name, position, count)
                for (session, _, _), position, count in zip(
                    parts, rows.positions, rows.row_counts, strict=True
                )
                if count
            ),
            rows.seen,
        )
        for rows in alignment.lanes
    )
    return alignment, lanes


@pytest.fixture(scope="module", params=["in process", "served"])
def fusion(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fusion]:
    weights = tmp_path_factory.mktemp("weights")
    for version, stack in STACKS.items():
        save_stack(stack, weights / version)
    with ExitStack() as stack:
        if request.param == "in process":
            fusion: Fusion = LocalFusion(FusionBackend(weights))
        else:
            folder = stack.enter_context(TemporaryDirectory())
            server = stack.enter_context(serve_fusion(weights, None, [f"unix:{folder}/f"]))
            fusion = RemoteFusion(lambda: server.targets[0], 30.0)
        fusion.prepare(PLAN)
        stack.callback(fusion.shutdown)
        yield fusion


STEP_IDS = iter(range(1, 10**9))


def step(fusion: Fusion, parts: Sequence[tuple[Session, int, int]], num_points: int = len(POINTS)) -> None:
    """One batch through the first points; everything that comes back is what it is all at once."""
    step_id = next(STEP_IDS)
    _, lanes = lanes_of(parts)
    for point in range(num_points):
        states = [
            torch.cat(
                [session.states[point][s][session.rows(s, begin, end)] for session, begin, end in parts]
            )
            for s in range(len(WIDTHS))
        ]
        fused = fusion.fuse(step_id, point, lanes[0].segments, states, lanes).states
        for s, own in enumerate(fused):
            assert (own is None) == (s not in POINTS[point].receivers)
            if own is not None:
                expected = torch.cat(
                    [session.expected[point][s][session.rows(s, begin, end)] for session, begin, end in parts]
                )
                tolerance = RESONANCE_TOLERANCE if POINTS[point].strategy == "resonance" else TOLERANCE
                torch.testing.assert_close(own, expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**20))
def test_however_rows_are_packed_they_are_fused_as_all_at_once(fusion: Fusion, seed: int) -> None:
    """Sessions of two versions in one batch, in pieces, with batches given up in the middle."""
    draw = random.Random(seed)
    sessions = [
        Session(f"{seed}.{i}", draw.choice(VERSIONS), draw.randint(0, 10**6))
        for i in range(draw.randint(1, 4))
    ]
    for session in sessions:
        assert fusion.open([session.name], session.version) == session.version
    try:
        while running := [session for session in sessions if session.done < session.num_rows]:
            chosen = draw.sample(running, draw.randint(1, len(running)))
            parts = [(s, s.done, draw.randint(s.done + 1, s.num_rows)) for s in chosen]
            if draw.random() < 0.3:
                step(fusion, parts, draw.randint(1, len(POINTS) - 1))
                continue
            step(fusion, parts)
            for session, _, end in parts:
                session.done = end
    finally:
        fusion.close([session.name for session in sessions])


def test_metrics_stay_numbers_where_a_lane_has_no_rows() -> None:
    weave = Weave(())
    weave.lanes = [WovenLane(SettlingText(None), [], [], [0], [""]) for _ in range(2)]  # type: ignore[arg-type]
    context = FusionContext.whole([1], alignment=align([weave], [(0, 1)], LANE_OF))
    states = [torch.randn(1 - min(1, lane), width) for lane, width in zip(LANE_OF, WIDTHS, strict=True)]
    for point in range(len(POINTS)):
        for name, value in STACKS["v0"].fuse(point, states, context).metrics.items():
            assert value.isfinite(), (point, name, value)


@pytest.fixture
def session(fusion: Fusion) -> Iterator[Session]:
    seed = next(s for s in range(100) if lagging(Session("hostile", "v0", s)))
    session = Session("hostile", "v0", seed)
    fusion.open([session.name], "v0")
    yield session
    fusion.close([session.name])


def lagging(session: Session) -> bool:
    return session.num_rows > 4 and all(lane.counts[0] == 0 < lane.counts[1] for lane in session.weave.lanes)


def broken(lanes: tuple[Lane, ...], kind: str) -> tuple[Lane, ...]:
    first, second, third = lanes
    segment = second.segments[0]
    huge = 2**31 - 1
    return {
        "too few": (first, second),
        "too many": (first, second, third, third),
        "nobody": (first, replace(second, segments=(replace(segment, session_id="x"),)), third),
        "twice": (first, replace(second, segments=(segment, segment)), third),
        "from later on": (first, replace(second, segments=(replace(segment, position=3),)), third),
        "no rows": (first, replace(second, segments=(replace(segment, num_rows=0),)), third),
        "many rows": (first, replace(second, segments=(replace(segment, num_rows=2**32 - 1),)), third),
        "blind": (first, replace(second, seen=()), third),
        "sees half": (first, replace(second, seen=second.seen[:2]), third),
        "sees too few": (first, replace(second, seen=(second.seen[0][1:], *second.seen[1:])), third),
        "sees before": (
            first,
            replace(second, seen=(tuple(-2 for _ in second.seen[0]), *second.seen[1:])),
            third,
        ),
        "sees ahead": (
            first,
            replace(second, seen=(tuple(huge for _ in second.seen[0]), *second.seen[1:])),
            third,
        ),
    }[kind]


KINDS = (
    *("too few", "too many", "nobody", "twice", "from later on", "no rows", "many rows"),
    *("blind", "sees half", "sees too few", "sees before", "sees ahead"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_that_make_no_sense_are_refused_and_leave_nothing(
    fusion: Fusion, session: Session, kind: str
) -> None:
    step(fusion, [(session, 0, 1)])
    _, lanes = lanes_of([(session, 1, 2)])
    states = [session.states[0][s][session.rows(s, 1, 2)] for s in range(len(WIDTHS))]
    bad = broken(lanes, kind)
    with pytest.raises(BraidError) as refused:
        fusion.fuse(next(STEP_IDS), 0, bad[0].segments, states, bad)
    assert "unexpected error" not in refused.value.message
    step(fusion, [(session, 1, session.num_rows)])


def test_lanes_in_another_order_of_sessions_are_refused(fusion: Fusion) -> None:
    """Else the rows of one session would be taken for those of another."""
    pair = [Session(name, "v0", 7) for name in ("one", "two")]
    fusion.open(["one", "two"], "v0")
    try:
        parts = [(session, 0, session.num_rows) for session in pair]
        _, lanes = lanes_of(parts)
        turned = tuple(
            replace(lane, segments=lane.segments[::-1]) if i else lane for i, lane in enumerate(lanes)
        )
        states = [torch.cat([session.states[0][s] for session in pair]) for s in range(len(WIDTHS))]
        with pytest.raises(InvalidRequestError, match="in the order of the anchor's"):
            fusion.fuse(next(STEP_IDS), 0, turned[0].segments, states, turned)
        step(fusion, parts)
    finally:
        fusion.close(["one", "two"])
