"""Training of fusion modules and readout on the language-model loss, in process. The shards stay as they are.

Shapes: B windows of L + 1 tokens, T packed rows, S shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from braid_fusion.stack import FusionStack
from braid_fusion.training import (
    OptimiserConfig,
    Progress,
    ScheduleConfig,
    TokenWindows,
    Trainer,
    TrainerConfig,
    TrainingRecord,
)
from braid_orchestrator.inprocess.parallel_loss import loss_in_threads
from braid_orchestrator.inprocess.whole_text import run_whole
from braid_services.shard.backend import ShardBackend

if TYPE_CHECKING:
    from braid_orchestrator.inprocess.braided import BraidedLLM


def fusion_training_config(
    num_steps: int, *, learning_rate: float = 3e-3, max_seconds: float | None = None
) -> TrainerConfig:
    """AdamW throughout: Muon would blow up connections that start at zero."""
    return TrainerConfig(
        max_steps=num_steps,
        max_seconds=max_seconds,
        optimiser=OptimiserConfig(learning_rate=learning_rate, weight_decay=0.01),
        schedule=ScheduleConfig(warmup=0.05, shape="cosine"),
    )


def braid_loss(backends: Sequence[ShardBackend], stack: FusionStack, windows: Tensor) -> dict[str, Tensor]:
    """Mean loss in nats of the braid on (B, L + 1) tokens, each but the first predicted from those before.

    Returns: the loss under "loss", and each shard's mean weight in the readout.
    """
    num_windows, length = windows.shape[0], windows.shape[1] - 1
    output = run_whole(backends, stack, windows[:, :-1].reshape(-1), [length] * num_windows)
    targets_T = windows[:, 1:].reshape(-1)
    if stack.plan.readout.kind == "anchor":
        loss = functional.cross_entropy(output.scores, targets_T)
    else:  # log-probabilities already
        loss = functional.nll_loss(output.scores, targets_T)
    weights_S = output.log_weights.detach().exp().mean(0)
    names = [shard.name for shard in stack.plan.shards]
    return {"loss": loss, **{f"weight/{name}": w for name, w in zip(names, weights_S, strict=True)}}


def train_fusion(
    backends: Sequence[ShardBackend],
    stack: FusionStack,
    batches: Iterable[Tensor],
    config: TrainerConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    log_path: Path | None = None,
    threads: int = 1,
) -> TrainingRecord:
    """Train a stack in place on batches of (B, L + 1) token ids of the anchor.

    Args:
        threads: that many share the windows of a batch, each best left to one thread of torch's.

    Raises: TrainingDivergedError, ContextLengthError.
    """
    parameters = [parameter for parameter in stack.parameters() if parameter.requires_grad]

    def loss_of_part(windows: Tensor) -> dict[str, Tensor]:
        return braid_loss(backends, stack, windows)

    def loss_of(windows: Tensor) -> dict[str, Tensor]:
        if windows.shape[0] % threads or threads == 1:
            return loss_of_part(windows)
        return loss_in_threads(pool, loss_of_part, windows.chunk(threads), parameters)

    with ThreadPoolExecutor(threads, thread_name_prefix="fusion-training") as pool:
        trainer = Trainer(
            stack,
            loss_of,
            batches,
            config,
            on_progress=on_progress,
            evaluate=evaluate,
            log_path=log_path,
        )
        return trainer.run()


def train_fusion_layers(
    braided: BraidedLLM,
    texts: Sequence[str],
    *,
    num_steps: int = 200,
    learning_rate: float = 3e-3,
    window: int = 128,
    batch_size: int = 8,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingRecord:
    """Train a braid's fusion modules and readout on texts, in place.

    Args:
        texts: must together have at least two tokens.
        window: tokens that are predicted at once, in each of ``batch_size`` texts per step; as many as there are
            where the texts have fewer.

    Raises: ValueError for too little text or nothing to train; TrainingDivergedError, ContextLengthError.
    """
    anchor = braided.backends[braided.plan.anchor]
    tokens = encode_texts(anchor, texts)
    batches = TokenWindows(tokens, min(window, max(len(tokens) - 1, 1)), batch_size, seed)
    config = fusion_training_config(num_steps, learning_rate=learning_rate)
    return train_fusion(braided.backends, braided.stack, batches, config, on_progress=on_progress)


def encode_texts(backend: ShardBackend, texts: Sequence[str]) -> Tensor:
    """(N,) token ids of all texts one after the other, each followed by the end-of-text token if there is one."""
    end = list(backend.card.eos_token_ids[:1])
    return torch.tensor([token_id for text in texts for token_id in (*backend.tokenize(text)[0], *end)])
