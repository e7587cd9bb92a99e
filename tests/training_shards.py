"""Shards as training sees them, in process or over real gRPC, and what plain autograd gives instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from braid_fusion.stack import FusionStack
from braid_orchestrator.inprocess.whole_text import run_whole
from braid_orchestrator.training.braid_pass import run_pass
from braid_orchestrator.training.local import LocalTrainingShard
from braid_orchestrator.training.ports import TrainingShard
from braid_orchestrator.training.remote import RemoteTrainingShard
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.main import serve_backend, serve_shard

TRANSPORTS = ("in process", "grpc")


@contextmanager
def training_shards(backends: Sequence[ShardBackend], transport: str) -> Iterator[list[TrainingShard]]:
    with ExitStack() as stack:
        shards: list[TrainingShard] = []
        sockets = Path(stack.enter_context(TemporaryDirectory()))
        for index, backend in enumerate(backends):
            if transport == "in process":
                shards.append(LocalTrainingShard(backend))
            else:
                server = stack.enter_context(serve_backend(backend, [f"unix:{sockets}/{index}.sock"]))
                shards.append(remote(backend.card.name, server.targets[0]))
            stack.callback(shards[-1].shutdown)
        yield shards


def remote(name: str, target: str, **options: float) -> RemoteTrainingShard:
    return RemoteTrainingShard(name, lambda: target, max_message_bytes=DEFAULT_MAX_MESSAGE_BYTES, **options)


def plain_logprobs(
    backends: Sequence[ShardBackend],
    stack: FusionStack,
    ids_T: Tensor,
    lengths: Sequence[int],
    targets_R: Tensor,
    rows: Sequence[int],
) -> Tensor:
    """(R,) by autograd through everything at once."""
    scores = run_whole(backends, stack, ids_T, lengths, logit_rows=rows).scores
    return scores.log_softmax(-1).gather(1, targets_R[:, None])[:, 0]


def gradients_of(stack: FusionStack, logprobs_R: Tensor) -> list[Tensor]:
    """Of a loss in which every row counts differently."""
    weights_R = torch.linspace(0.5, 1.5, logprobs_R.shape[0], dtype=logprobs_R.dtype)
    loss = -(weights_R * logprobs_R).mean()
    return list(
        torch.autograd.grad(loss, list(stack.parameters()), allow_unused=True, materialize_grads=True)
    )


def pass_logprobs(
    shards: Sequence[TrainingShard],
    stack: FusionStack,
    ids_T: Tensor,
    lengths: Sequence[int],
    targets_R: Tensor,
    rows: Sequence[int],
) -> Tensor:
    """(R,) by the services."""
    return run_pass(shards, stack, ids_T, lengths, targets_R, rows).target_logprobs


@contextmanager
def served_here(shards: Sequence[ShardConfig], log: Path) -> Iterator[dict[str, str]]:
    """As the demo's `shard_services`, in this process."""
    with ExitStack() as stack:
        yield {
            shard.name: stack.enter_context(serve_shard(shard, ["127.0.0.1:0"])).targets[0]
            for shard in shards
        }
