"""What must hold at a fusion point for every strategy and injection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid_fusion.context import FusionContext
from braid_fusion.resonance.config import COMPONENTS
from braid_fusion.row_cache import RowCache
from braid_fusion.stack import FusionStack

STRATEGIES = [
    ("weighted", {}),
    ("router", {}),
    ("router", {"top_k": 1}),
    ("router", {"top_k": 2}),
    ("mlp", {}),
    ("attention", {"max_offset": 3}),
    ("stitch", {"direction": "both"}),
    ("resonance", {}),
    (
        "resonance",
        {"mode": "parallel", "components": list(COMPONENTS), "num_primes": 3, "num_oscillators": 2},
    ),
]
INJECTIONS = ("residual", "replace")

# Matrix products of different heights add up in another order. Compared in float64: the weights of these tests are
# many times those of a trained module, and in float32 phases of many radians would enlarge what rounding leaves.
ROUNDING = 1e-9
# Of a sum of a few shares in float32.
SUM_ROUNDING = 1e-6

every_strategy = pytest.mark.parametrize(("strategy", "options"), STRATEGIES, ids=str)
every_injection = pytest.mark.parametrize("injection", INJECTIONS)


@every_strategy
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_untrained_residual_equals_the_shards_own_states(make_plan, states, strategy, options, dtype) -> None:
    stack = FusionStack(make_plan(strategy, options=options))
    before = [state.to(dtype) * 50 / 3 for state in states(5)]
    after = stack.fuse(0, before, FusionContext.whole([2, 3])).states
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(after, before, strict=True))


@every_strategy
@every_injection
def test_a_sequence_does_not_depend_on_its_batch(
    make_plan, states, trained, strategy, options, injection
) -> None:
    stack = trained(FusionStack(make_plan(strategy, options=options, injection=injection))).double()
    lengths, rows = [3, 7, 1, 5], [state.double() for state in states(16)]
    packed = stack.fuse(0, rows, FusionContext.whole(lengths)).states
    start = 0
    for length in lengths:
        alone = stack.fuse(0, [r[start : start + length] for r in rows], FusionContext.whole([length])).states
        for together, single in zip(packed, alone, strict=True):
            torch.testing.assert_close(together[start : start + length], single, atol=ROUNDING, rtol=ROUNDING)
        start += length


@every_strategy
def test_equal_lengths_go_as_one_batch_with_the_same_result(
    make_plan, states, trained, strategy, options
) -> None:
    stack = trained(FusionStack(make_plan(strategy, options=options))).double()
    rows = [state.double() for state in states(12)]
    packed = stack.fuse(0, rows, FusionContext.whole([4, 4, 4])).states
    for start in (0, 4, 8):
        alone = stack.fuse(0, [r[start : start + 4] for r in rows], FusionContext.whole([4])).states
        for together, single in zip(packed, alone, strict=True):
            torch.testing.assert_close(together[start : start + 4], single, atol=ROUNDING, rtol=ROUNDING)


@every_strategy
@every_injection
@pytest.mark.parametrize("shard", [0, 1, 2])
def test_changing_later_rows_changes_no_earlier_one(
    make_plan, states, trained, strategy, options, injection, shard
) -> None:
    stack = trained(FusionStack(make_plan(strategy, options=options, injection=injection)))
    rows = states(9)
    before = stack.fuse(0, rows, FusionContext.whole([9])).states
    rows[shard] = torch.cat([rows[shard][:5], states(4, seed=99)[shard]])
    after = stack.fuse(0, rows, FusionContext.whole([9])).states
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:5], new[:5])
    assert any(not torch.allclose(old[5:], new[5:]) for old, new in zip(before, after, strict=True))


@every_strategy
@pytest.mark.parametrize("cross", [True, False, "own"])
@settings(max_examples=15, deadline=None)
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_pieces_with_caches_equal_the_whole(
    make_plan, states, trained, strategy, options, cross, pieces
) -> None:
    stack = trained(FusionStack(make_plan(strategy, options={**options, "cross": cross}))).double()
    total = sum(pieces)
    rows = [state.double() for state in states(total)]
    with torch.no_grad():
        whole = stack.fuse(0, rows, FusionContext.whole([total])).states
        cache, position, parts = RowCache(), 0, []
        for piece in pieces:
            context = FusionContext((piece,), (position,), (cache,))
            parts.append(stack.fuse(0, [r[position : position + piece] for r in rows], context).states)
            position += piece
    for shard, expected in enumerate(whole):
        pieced = torch.cat([part[shard] for part in parts])
        torch.testing.assert_close(pieced, expected, atol=ROUNDING, rtol=ROUNDING)


@every_strategy
@every_injection
def test_gradcheck_passes_in_float64(make_plan, states, trained, strategy, options, injection) -> None:
    plan = make_plan(strategy, options=options, injection=injection, widths=(5, 4, 6), fusion_width=4)
    stack = trained(FusionStack(plan).double())
    inputs = [s.double().requires_grad_() for s in states(4, (5, 4, 6))]
    context = FusionContext.whole([3, 1])
    names = [name for name, _ in stack.named_parameters()]

    def fused(*tensors: torch.Tensor) -> torch.Tensor:
        values = dict(zip(names, tensors[3:], strict=True))
        output = torch.func.functional_call(stack, values, (0, tensors[:3], context))
        return torch.cat([state.flatten() for state in output.states])

    stack.forward = stack.fuse
    parameters = [parameter.detach().requires_grad_() for parameter in stack.parameters()]
    assert torch.autograd.gradcheck(fused, (*inputs, *parameters), fast_mode=True)


@every_strategy
@every_injection
@pytest.mark.parametrize("receivers", [(0, 1, 2), (1,)], ids=str)
def test_every_parameter_gets_a_gradient_within_three_steps(
    make_plan, states, strategy, options, injection, receivers
) -> None:
    stack = FusionStack(make_plan(strategy, options=options, injection=injection, receivers=receivers))
    # An expert hears the hub alone, so nobody reads the third shard's state.
    unread = [f"points.1.inputs.2.{part}" for part in ("weight", "bias")]
    unread = unread if strategy == "stitch" and receivers == (1,) else []
    optimiser = torch.optim.SGD(stack.parameters(), lr=0.1)
    reached = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in stack.named_parameters()}
    for step in range(3):
        rows, targets = states(24, seed=step), states(24, seed=100 + step)
        output = stack.fuse(0, rows, FusionContext.whole([12, 12]))
        loss = sum((output.states[r] - targets[r]).square().mean() for r in receivers)
        optimiser.zero_grad()
        loss.backward()
        for name, parameter in stack.named_parameters():
            if parameter.grad is not None:
                reached[name] |= parameter.grad.abs() > 0
        optimiser.step()
    assert [name for name, mask in reached.items() if not mask.all()] == unread


@every_strategy
@pytest.mark.parametrize("cross", [False, "own"])
def test_no_cross_cuts_what_passes_between_shards(
    make_plan, states, trained, strategy, options, cross
) -> None:
    stack = trained(FusionStack(make_plan(strategy, options={**options, "cross": cross})))
    rows = states(6)
    before = stack.fuse(0, rows, FusionContext.whole([6])).states
    other = [rows[0], *states(6, seed=5)[1:]]
    after = stack.fuse(0, other, FusionContext.whole([6])).states
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])
    with_cross = trained(FusionStack(make_plan(strategy, options=options)))
    assert not torch.allclose(
        with_cross.fuse(0, rows, FusionContext.whole([6])).states[0],
        with_cross.fuse(0, other, FusionContext.whole([6])).states[0],
    )


@pytest.mark.parametrize("strategy", ["attention", "mlp", "router"])
def test_own_states_take_the_places_of_the_others(make_plan, trained, strategy) -> None:
    """As if all shards were in the receiver's state, where they enter alike."""
    own = trained(FusionStack(make_plan(strategy, options={"cross": "own"}, widths=(16, 16, 16))))
    crossing = FusionStack(make_plan(strategy, widths=(16, 16, 16)))
    own.points["1"].inputs[1].load_state_dict(own.points["1"].inputs[0].state_dict())
    own.points["1"].inputs[2].load_state_dict(own.points["1"].inputs[0].state_dict())
    crossing.load_state_dict(own.state_dict())
    rows = [torch.randn(6, 16, generator=torch.Generator().manual_seed(0))] * 3
    context = FusionContext.whole([6])
    alike = zip(own.fuse(0, rows, context).states, crossing.fuse(0, rows, context).states, strict=True)
    for alone, together in alike:
        torch.testing.assert_close(alone, together)


@every_strategy
def test_dropout_is_for_training_only(make_plan, states, trained, strategy, options) -> None:
    stack = trained(FusionStack(make_plan(strategy, options={**options, "dropout": 0.3})))
    without = trained(FusionStack(make_plan(strategy, options=options)))
    without.load_state_dict(stack.state_dict())
    rows, context = states(6), FusionContext.whole([6])
    torch.manual_seed(0)
    dropped = stack.train().fuse(0, rows, context).states[0]
    assert not torch.allclose(dropped, stack.fuse(0, rows, context).states[0])
    served = stack.eval().fuse(0, rows, context).states
    assert all(torch.equal(a, b) for a, b in zip(served, without.fuse(0, rows, context).states, strict=True))


@every_strategy
def test_metrics_are_tensors_that_carry_gradients(make_plan, states, trained, strategy, options) -> None:
    stack = trained(FusionStack(make_plan(strategy, options=options)))
    metrics = stack.fuse(0, states(6), FusionContext.whole([6])).metrics
    assert {"gate/code", "gate/prose.v2", "update/maths"} <= metrics.keys()
    assert all(value.shape == () and torch.isfinite(value) for value in metrics.values())
    assert metrics["update/code"].requires_grad
    if strategy not in ("mlp", "resonance"):
        shares = [metrics[f"weight/{name}"] for name in ("code", "prose.v2", "maths")]
        assert 0.0 < float(sum(shares).detach()) <= 1.0 + SUM_ROUNDING
    quiet = stack.fuse(0, states(6), FusionContext((6,), (0,), want_metrics=False)).metrics
    assert quiet == {}
