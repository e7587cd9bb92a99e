"""The modules of a whole plan: how they start, what they refuse, a user's own among them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from braid_fusion.context import FusionContext
from braid_fusion.errors import FusionShapeError, PlanError
from braid_fusion.plan import PlanReadout
from braid_fusion.stack import FusionStack
from braid_fusion.strategies import FusionLayer, make_strategy, register_strategy, strategy_names

WHOLE = FusionContext.whole([5])


def test_untrained_weighted_replace_is_the_average_where_widths_agree(make_plan, states) -> None:
    plan = make_plan("weighted", injection="replace", widths=(8, 8, 8), fusion_width=8)
    rows = states(5, (8, 8, 8))
    for fused in FusionStack(plan).fuse(0, rows, WHOLE).states:
        torch.testing.assert_close(fused, sum(rows) / 3)


def test_untrained_replace_between_different_widths_projects_and_comes_back(make_plan, states) -> None:
    plan = make_plan("weighted", injection="replace", widths=(12,), fusion_width=8)
    rows = states(5, (12,))
    once = FusionStack(plan).fuse(0, rows, WHOLE).states[0]
    assert once.shape == (5, 12)
    assert torch.linalg.norm(once) <= 3 * torch.linalg.norm(rows[0])


def test_only_receivers_are_changed(make_plan, states) -> None:
    out = FusionStack(make_plan(receivers=(2,))).fuse("1", states(5), WHOLE).states
    assert out[0] is None and out[1] is None and out[2].shape == (5, 10)


def test_no_receivers_in_the_plan_means_all(make_plan, states) -> None:
    out = FusionStack(make_plan(receivers=())).fuse(0, states(5), WHOLE).states
    assert all(isinstance(state, Tensor) for state in out)


@pytest.mark.parametrize("strategy", ["weighted", "router", "mlp", "attention", "stitch", "resonance"])
def test_a_plan_gives_the_same_numbers_each_time_and_leaves_the_global_generator_alone(
    make_plan, strategy
) -> None:
    plan = make_plan(strategy, readout="gate", num_points=2)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = FusionStack(plan).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second = FusionStack(plan).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = FusionStack(dataclasses.replace(plan, seed=1)).state_dict()
    assert not torch.equal(first["points.1.inputs.0.weight"], other["points.1.inputs.0.weight"])


def test_points_may_have_different_strategies(make_plan, states) -> None:
    plan = make_plan(num_points=3)
    names = ("weighted", "attention", "router")
    points = tuple(
        dataclasses.replace(point, strategy=name) for point, name in zip(plan.points, names, strict=True)
    )
    stack = FusionStack(dataclasses.replace(plan, points=points))
    for index in range(3):
        assert len(stack.fuse(index, states(5), WHOLE).states) == 3
    assert list(stack.points) == ["1", "2", "3"]


class _Concatenating(FusionLayer):
    """The braiding guide's own example of a custom fusion layer."""

    def __init__(self, num_models: int, hidden_dim: int) -> None:
        super().__init__()
        self.custom_layer = nn.Linear(hidden_dim * num_models, hidden_dim)

    def forward(self, hidden_states: list[Tensor]) -> Tensor:
        return self.custom_layer(torch.cat(hidden_states, dim=-1))


class _Plain(nn.Module):
    """Not of our classes, with other argument names and an option."""

    def __init__(self, count: int, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(dim, dim) for _ in range(count))
        self.scale = scale

    def forward(self, hidden_states: list[Tensor]) -> list[Tensor]:
        return [self.scale * project(state) for project, state in zip(self.maps, hidden_states, strict=True)]


@pytest.mark.parametrize(("cls", "options"), [(_Concatenating, {}), (_Plain, {"scale": 2.0})])
def test_a_users_own_class_works_as_a_strategy(make_plan, states, cls, options) -> None:
    register_strategy("test_own")(cls)
    before = torch.random.get_rng_state()
    plan = make_plan("test_own", options=options)
    stack = FusionStack(plan)
    assert torch.equal(before, torch.random.get_rng_state())
    rows = states(5)
    assert all(torch.equal(a, b) for a, b in zip(stack.fuse(0, rows, WHOLE).states, rows, strict=True))
    loss = sum(state.square().sum() for state in stack.fuse(0, rows, WHOLE).states)
    loss.backward()
    assert stack.points["1"].outputs[0].out.weight.grad.abs().sum() > 0
    again = FusionStack(plan).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in stack.state_dict().items())


def test_a_strategy_can_be_exchanged_in_place(make_plan, states) -> None:
    stack = FusionStack(make_plan("weighted", injection="replace", widths=(8, 8), fusion_width=8))
    rows = states(5, (8, 8))

    class _First(nn.Module):
        def forward(self, hidden_states: list[Tensor]) -> Tensor:
            return hidden_states[0]

    stack.points["1"].strategy = _First()
    assert all(torch.equal(state, rows[0]) for state in stack.fuse(0, rows, WHOLE).states)


def test_a_strategy_of_ours_can_be_called_like_the_guides(states) -> None:
    for name in ("weighted", "router", "mlp", "attention", "stitch", "resonance"):
        fused = make_strategy(name, 2, 8)(states(5, (8, 8)))
        assert (fused if isinstance(fused, Tensor) else fused[1]).shape == (5, 8)


def test_a_built_in_name_cannot_be_taken_over() -> None:
    with pytest.raises(PlanError, match="'mlp' is built in"):
        register_strategy("mlp")(_Plain)
    assert {"weighted", "learned_weighted", "router", "mlp", "attention", "stitch", "resonance"} <= set(
        strategy_names()
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strategy": "stich"}, r"point '1': strategy: got 'stich', expected one of .*weighted"),
        ({"options": {"top": 1}}, r"point '1': strategy 'mlp': got options \{'top': 1\}"),
        ({"strategy": "router", "options": {"top_k": 4}}, "top_k, of the shards: got 4, expected .* 1 to 3"),
        ({"strategy": "attention", "options": {"num_heads": 3}}, "num_heads: got 3, expected a divisor .* 8"),
        ({"strategy": "attention", "options": {"max_offset": -1}}, "max_offset: got -1"),
        ({"injection": "add"}, "injection: got 'add', expected one of residual, replace"),
        ({"fusion_width": 0}, "fusion_width: got 0"),
        ({"receivers": (0, 3)}, "receivers: got 3"),
        ({"receivers": (0, 0)}, "receivers"),
        ({"layers": (1, 2)}, r"layers: got \(1, 2\), expected one per shard \(3\)"),
        ({"layers": (1, 2, 6)}, "layer of 'maths': got 6, expected a whole number from 0 to 5"),
        ({"layers": ("1", 2, 3)}, "layer of 'code': got '1'"),
        ({"layers": (True, 2, 3)}, "layer of 'code': got True"),
        ({"receivers": (0.0, 1)}, "receivers: got 0.0"),
        ({"fusion_width": 8.0}, "fusion_width: got 8.0"),
        ({"fusion_width": 2**40}, "fusion_width: got 1099511627776"),
        ({"name": 5}, "point 5: name: got 5, expected text"),
        ({"strategy": ["mlp"]}, r"strategy: got \['mlp'\], expected text"),
        ({"options": [1]}, r"options: got \[1\]"),
        ({"options": {"cross": "no"}}, "cross: got 'no', expected true, false or 'own'"),
        ({"options": {"dropout": 1}}, "dropout: got 1, expected a number from 0 to less than 1"),
        ({"options": {"dropout": True}}, "dropout: got True, expected a number"),
        ({"strategy": "router", "options": {"top_k": 1.5}}, "top_k.*: got 1.5"),
        ({"strategy": "router", "options": {"top_k": True}}, "top_k.*: got True"),
        ({"strategy": "router", "options": {"hidden": "many"}}, "hidden: got 'many'"),
        ({"strategy": "attention", "options": {"max_offset": 2.5}}, "max_offset: got 2.5"),
        ({"strategy": "attention", "options": {"max_offset": 2**40}}, "max_offset: got 1099511627776"),
        ({"strategy": "attention", "options": {"num_heads": "2"}}, "num_heads: got '2'"),
        ({"strategy": "attention", "options": {"num_heads": 0}}, "num_heads: got 0"),
        (
            {"strategy": "resonance", "options": {"components": ["prime", "x"]}},
            "components: got 'x', .* kuramoto",
        ),
        ({"strategy": "resonance", "options": {"components": "prime"}}, "components: got 'prime', .* list"),
        (
            {"strategy": "resonance", "options": {"components": ["smf"]}},
            "components: got 'smf' without 'prime'",
        ),
        ({"strategy": "resonance", "options": {"mode": "serial"}}, "mode: got 'serial', expected one of par"),
        (
            {"strategy": "resonance", "options": {"num_heads": 3}},
            "num_heads: got 3, expected a divisor .* 2 q",
        ),
        ({"strategy": "resonance", "options": {"num_primes": 1}}, "num_primes: got 1, .* from 2"),
        (
            {"strategy": "resonance", "options": {"coupling": "strong"}},
            "coupling: got 'strong', expected a num",
        ),
        ({"strategy": "resonance", "options": {"num_steps": 2.5}}, "num_steps: got 2.5"),
        ({"strategy": "resonance", "options": {"threshold": 1.5}}, "threshold: got 1.5"),
        ({"strategy": "resonance", "options": {"soft_gate": 1}}, "soft_gate: got 1, expected true or false"),
        ({"name": "0.5"}, "point '0.5': expected a name that .* has no dot"),
        ({"name": "keys"}, "point 'keys': expected a name"),
    ],
)
def test_what_cannot_be_built_is_named(make_plan, change, says) -> None:
    plan = make_plan()
    plan = dataclasses.replace(plan, points=(dataclasses.replace(plan.points[0], **change),))
    with pytest.raises(PlanError, match=says):
        FusionStack(plan)


def test_a_plan_as_a_whole_is_checked(make_plan) -> None:
    plan = make_plan(num_points=2)
    with pytest.raises(PlanError, match="anchor: index: got 3"):
        FusionStack(dataclasses.replace(plan, anchor=3))
    for change, says in (
        ({"anchor": "0"}, "anchor: index: got '0'"),
        ({"seed": 1.5}, "seed: got 1.5"),
        ({"seed": 2**80}, "seed: got"),
        ({"readout": PlanReadout("anchor", [])}, r"readout: options: got \[\]"),
        ({"shards": (dataclasses.replace(plan.shards[0], width="8"), *plan.shards[1:])}, "width: got '8'"),
        ({"shards": (dataclasses.replace(plan.shards[0], name=None), *plan.shards[1:])}, "name: got None"),
    ):
        with pytest.raises(PlanError, match=says):
            FusionStack(dataclasses.replace(plan, **change))
    with pytest.raises(PlanError, match="points: got the names '1' more than once"):
        FusionStack(dataclasses.replace(plan, points=(plan.points[0], plan.points[0])))
    with pytest.raises(PlanError, match="in order of depth"):
        FusionStack(dataclasses.replace(plan, points=plan.points[::-1]))
    with pytest.raises(PlanError, match="at least 2"):
        FusionStack(make_plan("attention", widths=(8,)))


def test_states_of_another_shape_are_refused_by_name(make_plan, states) -> None:
    stack = FusionStack(make_plan())
    with pytest.raises(
        FusionShapeError, match=r"'prose.v2': got torch.float32 \(4, 8\), expected floats \(5, 8\)"
    ):
        stack.fuse(0, [states(5)[0], states(4)[1], states(5)[2]], WHOLE)
    with pytest.raises(FusionShapeError, match="got 2 states, expected one per shard: 3"):
        stack.fuse(0, states(5)[:2], WHOLE)
    with pytest.raises(FusionShapeError, match="int64"):
        stack.fuse(0, [*states(5)[:2], torch.zeros(5, 10, dtype=torch.int64)], WHOLE)
    with pytest.raises(PlanError, match="got index 1"):
        stack.fuse(1, states(5), WHOLE)
    with pytest.raises(PlanError, match="got 'middle'"):
        stack.fuse("middle", states(5), WHOLE)


def test_attention_refuses_pieces_without_caches(make_plan, states) -> None:
    stack = FusionStack(make_plan("attention"))
    with pytest.raises(PlanError, match="expected its caches"):
        stack.fuse(0, states(5), FusionContext((5,), (3,)))


def test_plans_need_no_torch() -> None:
    code = "import sys; from braid_fusion import BraidPlan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
