"""Stitch: who hears whom in which direction, and which point of a plan leads where."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from braid_fusion.context import FusionContext
from braid_fusion.errors import PlanError
from braid_fusion.plan import PlanPoint
from braid_fusion.stack import FusionStack
from braid_fusion.strategies import StitchFusion, make_strategy, place_points

WHOLE = FusionContext.whole([5])


def rows(seed: int = 0, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 8, generator=generator) for _ in range(count)]


def shaken(**options: object) -> StitchFusion:
    generator = torch.Generator().manual_seed(3)
    strategy = StitchFusion(3, 8, generator=generator, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in strategy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return strategy


@pytest.mark.parametrize(
    ("direction", "anchor", "heard"),
    [
        ("in", 0, {0: {0, 1, 2}}),
        ("in", 1, {1: {0, 1, 2}}),
        ("out", 0, {1: {0, 1}, 2: {0, 2}}),
        ("out", 2, {0: {0, 2}, 1: {1, 2}}),
        ("both", 1, {0: {0, 1}, 1: {0, 1, 2}, 2: {1, 2}}),
    ],
)
def test_the_hub_hears_all_and_experts_hear_the_hub(
    direction: str, anchor: int, heard: dict[int, set[int]]
) -> None:
    strategy = shaken(direction=direction, anchor=anchor)
    assert list(strategy.receivers) == sorted(heard)
    before = strategy.fuse(rows(), WHOLE).states
    for shard in range(3):
        changed = rows()
        changed[shard] = rows(seed=1)[shard]
        after = strategy.fuse(changed, WHOLE).states
        moved = {
            r
            for r, old, new in zip(strategy.receivers, before, after, strict=True)
            if not torch.equal(old, new)
        }
        assert moved == {receiver for receiver, shards in heard.items() if shard in shards}


def test_the_gate_looks_at_the_receivers_own_state_alone() -> None:
    strategy = shaken(direction="in")
    shares = strategy.fuse(rows(), WHOLE).weights_TS
    torch.testing.assert_close(shares.sum(-1), torch.ones(5))
    own, *others = rows()
    same = strategy.fuse([own, *rows(seed=1)[1:]], WHOLE).weights_TS
    other = strategy.fuse([rows(seed=1)[0], *others], WHOLE).weights_TS
    assert torch.equal(shares, same)
    assert not torch.allclose(shares, other)


def test_an_untrained_one_with_even_gates_is_the_mean_of_those_heard() -> None:
    strategy = StitchFusion(3, 8, "both")
    with torch.no_grad():
        for gate in strategy.gates:
            gate.weight.zero_()
    hub, *experts = strategy(rows())
    torch.testing.assert_close(hub, sum(rows()) / 3)
    for index, expert in enumerate(experts, start=1):
        torch.testing.assert_close(expert, (rows()[0] + rows()[index]) / 2)


@pytest.mark.parametrize("receivers", [(0,), (1,), (2, 1)], ids=str)
def test_fewer_receivers_than_could_are_served(
    make_plan, states, trained, receivers: tuple[int, ...]
) -> None:
    stack = trained(FusionStack(make_plan("stitch", options={"direction": "both"}, receivers=receivers)))
    out = stack.fuse(0, states(5), WHOLE).states
    assert [shard for shard, state in enumerate(out) if state is not None] == sorted(receivers)


def point(name: str, **options: object) -> PlanPoint:
    return PlanPoint(name, (1, 1, 1), "stitch", 8, options=options)


@pytest.mark.parametrize(
    ("count", "directions"),
    [(1, ["in"]), (2, ["out", "in"]), (3, ["in", "out", "in"]), (4, ["out", "in", "out", "in"])],
)
def test_a_plan_states_the_direction_of_each_point(count: int, directions: list[str]) -> None:
    points = [point(str(i)) for i in range(count)]
    points.insert(1, PlanPoint("other", (1, 1, 1), "mlp", 8))  # counts for nothing
    placed = [p for p in place_points(points, 3, 1) if p.strategy == "stitch"]
    assert [p.options["direction"] for p in placed] == directions
    assert [p.receivers for p in placed] == [{"in": (1,), "out": (0, 2)}[name] for name in directions]
    assert place_points(placed, 3, 1) == tuple(placed)


def test_what_a_point_says_itself_is_kept() -> None:
    said = dataclasses.replace(point("1", direction="out", cross=False), receivers=(2,))
    first, second, third = place_points([said, point("2", direction="alternate"), point("3")], 3, 0)
    assert first == said
    assert (second.options["direction"], third.options["direction"]) == ("out", "in")
    both = place_points([point("1", direction="both")], 3, 0)[0]
    assert both.receivers == (0, 1, 2)


def test_strategies_known_elsewhere_only_are_left_as_they_are() -> None:
    unknown = PlanPoint("1", (1, 1, 1), "of a service", 8)
    (placed,) = place_points([unknown], 3, 0)
    assert placed == dataclasses.replace(unknown, receivers=(0, 1, 2))


@pytest.mark.parametrize(
    ("options", "receivers", "says"),
    [
        ({"direction": "up"}, None, "direction: got 'up', expected one of in, out, both, alternate"),
        ({"direction": ["in"]}, None, r"direction: got \['in'\]"),
        ({"direction": "in"}, (0, 1), r"'in': got the receivers \(0, 1\), expected only \(0,\)"),
        ({"direction": "out"}, (0,), r"'out': got the receivers \(0,\), expected only \(1, 2\)"),
    ],
)
def test_what_cannot_be_stitched_is_named(options, receivers, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        make_strategy("stitch", 3, 8, options, receivers=receivers)
    with pytest.raises(PlanError, match="expected at least 2: a hub and its experts"):
        StitchFusion(1, 8)
