"""Mixing weights and mixing: what the engine and training both rely on."""

from __future__ import annotations

import math

import pytest
import torch

from braid_fusion.errors import FusionShapeError, PlanError
from braid_fusion.plan import PlanReadout
from braid_fusion.readout import NUM_LOGIT_FEATURES, logit_features, mix_logits
from braid_fusion.stack import FusionStack

ROUNDING = 1e-5


def _logits(
    num_rows: int = 4, vocabulary: int = 11, shards: int = 3, scale: float = 3.0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(num_rows, vocabulary, generator=generator) * scale for _ in range(shards)]


def test_mixing_is_of_probabilities() -> None:
    logits = _logits()
    weights = torch.tensor([[0.2, 0.5, 0.3]]).expand(4, -1)
    expected = sum(w * shard.softmax(-1) for w, shard in zip((0.2, 0.5, 0.3), logits, strict=True))
    torch.testing.assert_close(
        mix_logits(logits, weights.log()).exp(), expected, atol=ROUNDING, rtol=ROUNDING
    )


def test_all_weight_on_one_shard_gives_its_own_probabilities() -> None:
    logits = _logits()
    only_second = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(4, -1)
    assert torch.equal(mix_logits(logits, only_second), logits[1].log_softmax(-1))


def test_mixing_is_differentiable_in_float64() -> None:
    logits = [shard.double().requires_grad_() for shard in _logits(2, 5)]
    weights = torch.randn(2, 3, dtype=torch.float64).log_softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, *ls: mix_logits(ls, w), (weights, *logits))
    assert torch.autograd.gradcheck(lambda *ls: logit_features(ls), tuple(logits))


def test_a_token_that_all_rule_out_leaves_gradients_finite() -> None:
    logits = _logits()
    for shard in logits:
        shard[:, 0] = -math.inf
        shard.requires_grad_()
    weights = torch.full((4, 3), -math.log(3)).requires_grad_()
    mixed = mix_logits(logits, weights)
    assert bool((mixed[:, 0].exp() == 0).all())
    features = logit_features(logits)
    assert torch.isfinite(features).all()
    (mixed[:, 1:].sum() + features.sum()).backward()
    assert all(torch.isfinite(shard.grad[:, 1:]).all() for shard in logits)
    assert torch.isfinite(weights.grad).all()


def test_log_probabilities_may_be_given_instead_of_logits() -> None:
    logits = _logits()
    weights = torch.full((4, 3), -math.log(3))
    normalised = [shard.log_softmax(-1) for shard in logits]
    assert torch.equal(mix_logits(logits, weights), mix_logits(normalised, weights, normalised=True))
    assert torch.equal(logit_features(logits), logit_features(normalised, normalised=True))


@pytest.mark.parametrize("normalised", [False, True])
def test_a_padded_head_is_cut_to_the_tokens_all_have(normalised) -> None:
    short, long = _logits(4, 9, 1)[0], _logits(4, 12, 1)[0]
    weights = torch.tensor([[-math.inf, 0.0]]).expand(4, -1)
    given = [shard.log_softmax(-1) for shard in (short, long)] if normalised else [short, long]
    mixed = mix_logits(given, weights, normalised=normalised)
    torch.testing.assert_close(mixed, long[:, :9].log_softmax(-1), atol=ROUNDING, rtol=ROUNDING)


def test_half_precision_logits_are_mixed_in_float32() -> None:
    mixed = mix_logits([shard.bfloat16() for shard in _logits()], torch.full((4, 3), -math.log(3)))
    assert mixed.dtype is torch.float32
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(4))


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(FusionShapeError, match=r"got weights \(4, 2\)"):
        mix_logits(_logits(), torch.zeros(4, 2))


def test_features_run_from_certain_to_uniform() -> None:
    uniform, certain = torch.zeros(1, 7), torch.tensor([[50.0] + [0.0] * 6])
    features = logit_features([uniform, certain])
    assert features.shape == (1, 2, NUM_LOGIT_FEATURES)
    torch.testing.assert_close(features[0, 0], torch.ones(NUM_LOGIT_FEATURES))
    torch.testing.assert_close(features[0, 1], torch.zeros(NUM_LOGIT_FEATURES), atol=1e-4, rtol=0)


def test_anchor_puts_all_weight_on_the_anchor(make_plan, states) -> None:
    weights = FusionStack(make_plan(readout="anchor")).read_out(states(4)).exp()
    assert torch.equal(weights, torch.tensor([[1.0, 0.0, 0.0]]).expand(4, -1))


@pytest.mark.parametrize("kind", ["mixture", "gate"])
def test_learned_readouts_start_uniform_and_sum_to_one(make_plan, states, trained, kind) -> None:
    stack = FusionStack(make_plan(readout=kind))
    features = logit_features(_logits())
    torch.testing.assert_close(stack.read_out(states(4), features).exp(), torch.full((4, 3), 1 / 3))
    weights = trained(stack).read_out(states(4), features).exp()
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))
    assert not torch.allclose(weights, torch.full((4, 3), 1 / 3))


@pytest.mark.parametrize("kind", ["mixture", "gate"])
def test_weights_sum_to_one_under_autocast(make_plan, states, trained, kind) -> None:
    stack = trained(FusionStack(make_plan(readout=kind)))
    with torch.autocast("cpu", torch.bfloat16):
        log_weights = stack.read_out(states(4), logit_features(_logits()))
    torch.testing.assert_close(log_weights.exp().sum(-1), torch.ones(4))


def test_a_rows_gate_depends_on_that_row_alone(make_plan, states, trained) -> None:
    stack = trained(FusionStack(make_plan(readout="gate")))
    hidden, features = states(4), logit_features(_logits())
    together = stack.read_out(hidden, features)
    for row in range(4):
        alone = stack.read_out([h[row : row + 1] for h in hidden], features[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("kind", ["mixture", "gate"])
def test_every_readout_parameter_gets_a_gradient_from_the_loss(make_plan, states, kind) -> None:
    stack = FusionStack(make_plan(readout=kind))
    optimiser = torch.optim.SGD(stack.readout.parameters(), lr=0.5)
    reached = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in stack.readout.named_parameters()}
    logits, targets = _logits(32), torch.arange(32) % 11
    for _ in range(2):
        optimiser.zero_grad()
        log_weights = stack.read_out(states(32), logit_features(logits))
        torch.nn.functional.nll_loss(mix_logits(logits, log_weights), targets).backward()
        for name, parameter in stack.readout.named_parameters():
            reached[name] |= parameter.grad.abs() > 0
        optimiser.step()
    assert all(mask.all() for mask in reached.values())


def test_a_gate_without_its_features_is_refused(make_plan, states) -> None:
    stack = FusionStack(make_plan(readout="gate"))
    with pytest.raises(FusionShapeError, match=r"features: got None, expected \(4, 3, 3\)"):
        stack.read_out(states(4))
    with pytest.raises(FusionShapeError, match=r"readout: got states .*, expected \(R, width\)"):
        stack.read_out(states(4)[::-1], logit_features(_logits()))


@pytest.mark.parametrize(
    ("readout", "says"),
    [
        (PlanReadout("vote"), "kind: got 'vote', expected one of anchor, mixture, gate"),
        (PlanReadout("gate", {"width": 3}), r"got options \['width'\], expected only 'hidden'"),
        (PlanReadout("gate", {"hidden": 0}), "hidden: got 0"),
        (PlanReadout("mixture", {"hidden": 3}), r"got options \['hidden'\], expected none"),
    ],
)
def test_an_unknown_readout_is_refused(make_plan, readout, says) -> None:
    plan = make_plan()
    with pytest.raises(PlanError, match=says):
        FusionStack(type(plan)(plan.shards, 0, plan.points, readout))
