"""Trainers under measurement: one optimisation step of fusion modules, the shards in the trainer's process or not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from braid_fusion.stack import FusionStack
from braid_fusion.training import OptimiserConfig, make_optimisers
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.bench.braids import Variant
from braid_orchestrator.bench.machine import peak_bytes
from braid_orchestrator.bench.pair import NAMES, ModelSize, make_backend, settle_memory
from braid_orchestrator.training.local import LocalTrainingShard
from braid_orchestrator.training.loss import braid_loss
from braid_orchestrator.training.ports import TrainingShard
from braid_orchestrator.training.remote import RemoteTrainingShard
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES
from braid_services.shard.backend import ShardBackend
from braid_services.shard.main import serve_backend


@dataclass(frozen=True, slots=True, eq=False)
class PackedTexts:
    """As `loss.Batch`: texts of the same length, every token of which is predicted."""

    token_ids_T: Tensor  # noqa: N815 - shape letters
    lengths: tuple[int, ...]
    loss_rows_R: Tensor  # noqa: N815 - shape letters
    targets_R: Tensor  # noqa: N815 - shape letters

    @classmethod
    def random(cls, num_texts: int, length: int, vocab_size: int, seed: int) -> PackedTexts:
        """The same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(vocab_size, (num_texts, length + 1), generator=generator)
        rows = torch.arange(num_texts * length)
        return cls(ids[:, :-1].reshape(-1), (length,) * num_texts, rows, ids[:, 1:].reshape(-1))


class TrainerHost:
    """A trainer over the pair of models: in this process without ``targets``, else behind them."""

    def __init__(self, variant: Variant, size: ModelSize, targets: Mapping[str, str]) -> None:
        torch.set_num_threads(1)
        self._before_bytes = peak_bytes()
        if targets:
            self._shards: list[TrainingShard] = [
                RemoteTrainingShard(
                    name, partial(str, targets[name]), max_message_bytes=DEFAULT_MAX_MESSAGE_BYTES
                )
                for name in NAMES
            ]
        else:
            self._shards = [LocalTrainingShard(make_backend(index, size)) for index in range(len(NAMES))]
        self._stack = FusionStack(resolve_plan(variant.config(), [shard.card for shard in self._shards]))
        self._loss_of = braid_loss(self._shards, self._stack)
        self._optimisers = make_optimisers(self._stack, OptimiserConfig(learning_rate=1e-3))
        self._vocab_size = size.vocab_size
        settle_memory(1)

    def step(self, num_texts: int, length: int, seed: int) -> tuple[float, float]:
        """One step on random texts: how many seconds it took, and the loss before it."""
        batch = PackedTexts.random(num_texts, length, self._vocab_size, seed)
        started_s = time.perf_counter()
        loss = self._loss_of(batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return time.perf_counter() - started_s, float(loss.detach())

    def grown_bytes(self) -> int:
        """By how much the process's peak has grown since before it connected."""
        return peak_bytes() - self._before_bytes

    def stop(self) -> None:
        """Let go of the shards."""
        for shard in self._shards:
            shard.shutdown()


class TrainingShardHost:
    """One shard of the pair as a service that tells of its kept graphs."""

    def __init__(self, index: int, size: ModelSize, target: str, training_bytes: int) -> None:
        torch.set_num_threads(1)
        backend = make_backend(index, size)
        limited = replace(backend.config, training_bytes=training_bytes)
        self._backend = ShardBackend(backend.model, backend.tokenizer, limited)
        self._server = serve_backend(self._backend, [target])
        settle_memory(1)

    def kept_bytes(self) -> int:
        """The most that graphs took together, so far."""
        return self._backend.training.graphs.peak_bytes

    def stop(self) -> None:
        """End the service."""
        self._server.stop()
