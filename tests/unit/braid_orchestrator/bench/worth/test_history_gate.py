"""The evidence is that of the text so far, and the gate that knows it holds the posterior within it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from models import tiny_llama

from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.bench.worth.history_gate import DECAYS, HistoryGate, evidence
from braid_orchestrator.config.values import BraidConfig, PointConfig, ReadoutConfig
from braid_orchestrator.evaluation.mixes import posterior_log_weights, uniform_log_weights
from braid_orchestrator.evaluation.scoring import score_alone
from braid_orchestrator.training.local import LocalTrainingShard
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

LENGTHS = [12, 7]
IDS_T, TARGETS_T = torch.randint(1, 200, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def shards() -> Iterator[list[LocalTrainingShard]]:
    configs = [ShardConfig(name=name, model="in memory") for name in ("left", "right")]
    made = [
        LocalTrainingShard(ShardBackend.from_model(tiny_llama(seed), None, config))
        for seed, config in enumerate(configs, 1)
    ]
    yield made
    for shard in made:
        shard.shutdown()


def gate(shards: list[LocalTrainingShard], *points: PointConfig) -> HistoryGate:
    config = BraidConfig(
        name="test",
        anchor="left",
        shards=tuple(ShardConfig(name=shard.name, model="in memory") for shard in shards),
        points=points,
        readout=ReadoutConfig("gate", {"hidden": 4}),
    )
    return HistoryGate(shards, FusionStack(resolve_plan(config, [shard.card for shard in shards])))


def test_evidence_is_a_decaying_sum_of_what_came_before_in_the_window() -> None:
    own_TS = -torch.rand(8, 2, generator=torch.Generator().manual_seed(1))
    found = evidence(own_TS, [5, 3])
    for begin, end in ((0, 5), (5, 8)):
        assert torch.equal(found[begin], torch.zeros(2, len(DECAYS)))
        for k, decay in enumerate(DECAYS):
            running_S = torch.zeros(2)
            for t in range(begin + 1, end):
                running_S = decay * running_S + own_TS[t - 1]
                torch.testing.assert_close(found[t, :, k], running_S)


def test_untrained_it_is_the_average_and_with_one_weight_the_posterior(
    shards: list[LocalTrainingShard],
) -> None:
    history = gate(shards)
    alone = [score_alone(shard, IDS_T, LENGTHS, TARGETS_T, accuracy=False) for shard in shards]
    own_TS = torch.stack([one.logprobs_T for one in alone], dim=1)
    with torch.no_grad():
        average_T = (uniform_log_weights(*own_TS.shape) + own_TS).logsumexp(-1)
        torch.testing.assert_close(history(IDS_T, LENGTHS, TARGETS_T), average_T)
        history.evidence.weight[0, DECAYS.index(0.8)] = 1.0
        posterior_T = (posterior_log_weights(own_TS, LENGTHS, 0.8) + own_TS).logsumexp(-1)
        torch.testing.assert_close(history(IDS_T, LENGTHS, TARGETS_T), posterior_T)


@pytest.mark.parametrize("points", [(), (PointConfig(1, strategy="mlp", fusion_width=8),)])
def test_every_parameter_learns(shards: list[LocalTrainingShard], points: tuple[PointConfig, ...]) -> None:
    history = gate(shards, *points)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in history.parameters():
            parameter.normal_(std=0.3, generator=generator)
    history(IDS_T, LENGTHS, TARGETS_T).mean().backward()
    without = [name for name, p in history.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
