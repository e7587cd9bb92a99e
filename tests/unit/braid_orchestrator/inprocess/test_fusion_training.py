"""Training a braid's fusion modules: threads share the work and change nothing, and the shards stay as they are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import tiny_backend

from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig, PointConfig, ReadoutConfig
from braid_orchestrator.inprocess.fusion_training import braid_loss, fusion_training_config, train_fusion
from braid_orchestrator.inprocess.parallel_loss import loss_in_threads
from braid_services.shard.backend import ShardBackend


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return [tiny_backend("left", 1), tiny_backend("right", 2, width=48)]


def new_stack(backends: list[ShardBackend]) -> FusionStack:
    config = BraidConfig(
        name="t",
        anchor="left",
        shards=tuple(backend.config for backend in backends),
        points=(PointConfig(1), PointConfig(2)),
        readout=ReadoutConfig("gate"),
    )
    return FusionStack(resolve_plan(config, [backend.card for backend in backends]))


def windows(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 260, (4, 17), generator=torch.Generator().manual_seed(seed))


def test_threads_give_the_same_loss_and_gradients(backends: list[ShardBackend]) -> None:
    gradients, losses = [], []
    for threads in (1, 2):
        stack = new_stack(backends)
        with torch.no_grad():
            for index, parameter in enumerate(stack.parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
                parameter.add_(0.1 * noise)
        if threads == 1:
            loss = braid_loss(backends, stack, windows())["loss"]
        else:
            with ThreadPoolExecutor(2) as pool:
                loss = loss_in_threads(
                    pool,
                    lambda part, stack=stack: braid_loss(backends, stack, part),
                    windows().chunk(2),
                    list(stack.parameters()),
                )["loss"]
        (2.0 * loss).backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad for parameter in stack.parameters()])
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)


def test_an_error_in_a_thread_is_raised() -> None:
    def fail(part: torch.Tensor) -> dict[str, torch.Tensor]:
        raise ValueError("no such part")

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="no such part"):
        loss_in_threads(pool, fail, windows().chunk(2), [])


def test_training_changes_the_stack_and_no_shard(backends: list[ShardBackend]) -> None:
    stack = new_stack(backends)
    before = [p.clone() for backend in backends for p in backend.model.parameters()]
    untrained = [p.clone() for p in stack.parameters()]
    train_fusion(backends, stack, iter([windows()] * 8), fusion_training_config(8), threads=2)
    after = [p for backend in backends for p in backend.model.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not any(torch.equal(old, new) for old, new in zip(untrained, stack.parameters(), strict=True))
