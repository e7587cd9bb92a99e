"""A generation beside a training run on the same shards, over real gRPC: how much slower it gets.

The models' layers sleep for as long as those of larger models would compute, longer for more rows: then times are
those of turns, and what else the machine has to do matters little.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from braids import Client, braid_config, running
from models import byte_tokenizer, tiny_llama
from training_shards import remote

from braid_fusion.stack import FusionStack
from braid_fusion.training import Progress
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import PointConfig
from braid_orchestrator.training.data import TokenCorpus, TrainingTexts
from braid_orchestrator.training.ports import TrainingShard
from braid_orchestrator.training.run import RunOptions, train_braid
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

pytestmark = pytest.mark.timeout(300)

# One row takes a layer 8 ms, the 48 of a training batch 48 ms: a training span is as long as six served ones.
ROW_S, LEAST_S = 0.001, 0.008
OPTIONS = RunOptions(steps=10**6, window=16, batch_size=3, checkpoint_every=10**6)
NUM_TOKENS, ROUNDS = 32, 2
# With half the time at most for training, a generation takes at most twice as long, and less where training has
# pauses of its own; to which come served steps that wait for a span that has begun. Without rests between training's
# turns it takes three to five times as long.
SLOWER_BY_HALF = 2.5


def slow_backend(name: str, seed: int, training_share: float) -> ShardBackend:
    config = ShardConfig(name, name, cache_bytes=2**22, block_tokens=8, training_share=training_share)
    backend = ShardBackend.from_model(tiny_llama(seed), byte_tokenizer(), config)

    def compute(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        time.sleep(max(LEAST_S, ROW_S * args[0].shape[-2]))

    for layer in backend.spans.layers:
        layer.mlp.register_forward_pre_hook(compute)
    return backend


@dataclass
class Beside:
    """Seconds per token of a generation, alone and beside training, and how many training steps ended meanwhile."""

    alone_s: float
    beside_s: float
    steps: int

    @property
    def slower(self) -> float:
        return self.beside_s / self.alone_s


def seconds_per_token(client: Client) -> float:
    began_s = time.monotonic()
    tokens = client.generate("Once upon", max_tokens=NUM_TOKENS, ignore_eos=True, seed=3).token_ids
    assert len(tokens) == NUM_TOKENS
    return (time.monotonic() - began_s) / NUM_TOKENS


@contextmanager
def training(shards: list[TrainingShard], folder: Path) -> Iterator[list[int]]:
    """A run on these shards for as long as the block lasts; yields the numbers of its finished steps."""
    config = braid_config(points=(PointConfig(at=1, strategy="mlp"), PointConfig(at=2, strategy="mlp")))
    stack = FusionStack(resolve_plan(config, [shard.card for shard in shards]))
    ids_N = torch.arange(400, dtype=torch.int32) % 250
    corpus = TokenCorpus(ids_N, torch.tensor([0, 400]), torch.tensor([0], dtype=torch.int32))
    steps: list[int] = []
    begun, over = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def note(progress: Progress) -> None:
        steps.append(progress.step)
        begun.set()

    def run() -> None:
        try:
            train_braid(
                shards,
                stack,
                TrainingTexts(corpus, None),
                OPTIONS,
                folder,
                version="v1",
                on_progress=note,
                progress_bar=False,
                stop_wanted=over.is_set,
            )
        except Exception as error:  # noqa: BLE001 - raised below
            failed.append(error)
            begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert begun.wait(60), "training did not begin"
        yield steps
    finally:
        over.set()
        thread.join(60)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def measure(training_share: float, folder: Path) -> Beside:
    """Generations beside training, and before and after that alone."""
    backends = [slow_backend(name, seed, training_share) for seed, name in enumerate(("left", "right"))]
    config = braid_config(points=(PointConfig(at=1, strategy="mlp"), PointConfig(at=2, strategy="mlp")))
    alone, beside = [], []
    with running(config, backends, "grpc, fusion embedded", folder) as client:
        seconds_per_token(client)  # warms up
        shards: list[TrainingShard] = [
            remote(name, f"unix:{folder}/{name}.sock") for name in ("left", "right")
        ]
        alone += [seconds_per_token(client) for _ in range(ROUNDS)]
        with training(shards, folder / "run") as done:
            before = len(done)
            beside += [seconds_per_token(client) for _ in range(2 * ROUNDS)]
            steps = len(done) - before
        alone += [seconds_per_token(client) for _ in range(ROUNDS)]
        for shard in shards:
            shard.shutdown()
    # Of each the one that the machine's other work disturbed least.
    return Beside(min(alone), min(beside), steps)


def test_a_generation_beside_training_is_slower_by_its_share_at_most(tmp_path: Path) -> None:
    found = {}
    for share in (0.5, 0.1):
        (tmp_path / str(share)).mkdir()
        found[share] = measure(share, tmp_path / str(share))
        assert found[share].steps > 0, "training stood still"
    assert found[0.5].slower < SLOWER_BY_HALF, found
    assert found[0.1].slower < found[0.5].slower, found
    assert found[0.1].steps < found[0.5].steps, found
