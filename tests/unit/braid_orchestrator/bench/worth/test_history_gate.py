"""The evidence is that of the text so far, and the gate that knows it holds the posterior within it."""

from __future__ import annotations

import torch
from models import tiny_llama

from braid_orchestrator.bench.worth.ensembles import posterior_mix
from braid_orchestrator.bench.worth.history_gate import DECAYS, HistoryGate, evidence
from braid_services.shard.backend import ShardBackend

WINDOWS = torch.randint(1, 200, (2, 13), generator=torch.Generator().manual_seed(0))
IDS_T, TARGETS_T = WINDOWS[:, :-1].reshape(-1), WINDOWS[:, 1:].reshape(-1)


def gate() -> HistoryGate:
    return HistoryGate([ShardBackend.from_model(tiny_llama(seed)) for seed in (1, 2)], 4, seed=0)


def test_evidence_is_a_decaying_sum_of_what_came_before() -> None:
    logprobs_BLS = -torch.rand(1, 5, 2, generator=torch.Generator().manual_seed(1))
    found = evidence(logprobs_BLS)
    assert torch.equal(found[:, 0], torch.zeros(1, 2, len(DECAYS)))
    for k, decay in enumerate(DECAYS):
        running_BS = torch.zeros(1, 2)
        for t in range(1, 5):
            running_BS = decay * running_BS + logprobs_BLS[:, t - 1]
            torch.testing.assert_close(found[:, t, :, k], running_BS)


def test_untrained_it_is_the_average_and_with_one_weight_the_posterior() -> None:
    history = gate()
    own_BLS = torch.stack(
        [
            backend.forward(IDS_T, [12, 12])
            .finish()[1]
            .log_softmax(-1)
            .gather(1, TARGETS_T[:, None])
            .view(2, 12)
            for backend in history._backends
        ],
        dim=-1,
    ).detach()
    with torch.no_grad():
        average_T = own_BLS.flatten(0, 1).exp().mean(-1).log()
        torch.testing.assert_close(history(IDS_T, [12, 12], TARGETS_T), average_T)
        history.evidence.weight[0, DECAYS.index(0.8)] = 1.0
        posterior_BL = posterior_mix(own_BLS, 0.8)
        torch.testing.assert_close(history(IDS_T, [12, 12], TARGETS_T), posterior_BL.flatten())


def test_every_parameter_learns() -> None:
    history = gate()
    with torch.no_grad():
        history.gate.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    history(IDS_T, [12, 12], TARGETS_T).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in history.parameters())
