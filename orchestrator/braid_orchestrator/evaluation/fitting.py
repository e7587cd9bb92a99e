"""Baselines that are learned: mixes of the shards' probabilities by weights for all tokens, or by a gate per token.

They are braids without points, with the readouts ``mixture`` and ``gate``: what a braid can do without any exchange
of states. Both are trained at once, on the same passes through the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_fusion.training import (
    EarlyStopping,
    OptimiserConfig,
    Progress,
    ScheduleConfig,
    Trainer,
    TrainerConfig,
)
from braid_orchestrator.evaluation.scoring import GATE, GLOBAL, Predictor, outputs_plan
from braid_orchestrator.training.braid_pass import read_out, run_to_ends
from braid_orchestrator.training.data import EvaluationBatches, TextBatches, TrainingBatch, TrainingTexts
from braid_orchestrator.training.ports import TrainingShard
from braid_services.fusion.translation import braid_errors

_READOUTS = {GLOBAL: "mixture", GATE: "gate"}


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Each step takes ``batch_size`` windows of ``window`` tokens. With held-out text the best of ten evaluations
    counts."""

    steps: int = 200
    window: int = 128
    batch_size: int = 8
    learning_rate: float = 1e-2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """The learned readouts, and how they came about, in plain values."""

    stacks: Mapping[Predictor, FusionStack]
    record: Mapping[str, object]


def fit_readouts(
    shards: Sequence[TrainingShard],
    plan: BraidPlan,
    texts: TrainingTexts,
    options: FitOptions,
    on_progress: Callable[[Progress], None] | None = None,
) -> Fitted:
    """Train the learned baselines of a braid's shards.

    Args:
        shards: one per shard of the plan, in its order.
        texts: in the anchor's tokens; none of them should be evaluated on.

    Raises: InvalidRequestError for texts shorter than a window; BraidError of every kind.
    """
    stacks = {who: FusionStack(outputs_plan(plan, readout)) for who, readout in _READOUTS.items()}
    batches = TextBatches(texts.training, options.window, options.batch_size, options.seed)
    held_out = None
    if texts.held_out is not None:
        held_out = EvaluationBatches(texts.held_out, options.window, options.batch_size)

    def losses_of(batch: TrainingBatch) -> dict[Predictor, Tensor]:
        with torch.no_grad():  # without points, nothing in a shard is trained
            ends = run_to_ends(
                shards,
                stacks[GATE],
                batch.token_ids_T,
                batch.lengths,
                batch.targets_R,
                batch.loss_rows_R.tolist(),
            )
        return {who: -read_out(stack, ends).target_logprobs.mean() for who, stack in stacks.items()}

    def loss_of(batch: TrainingBatch) -> dict[str, Tensor]:
        losses = losses_of(batch)
        return {"loss": losses[GLOBAL] + losses[GATE], "tokens": torch.tensor(float(batch.num_targets))}

    def evaluate() -> dict[str, float]:
        total, count = 0.0, 0
        for batch in held_out or ():
            if batch.num_targets:
                total += float(sum(losses_of(batch).values())) * batch.num_targets
                count += batch.num_targets
        return {"loss": total / max(1, count)}

    config = TrainerConfig(
        max_steps=options.steps,
        optimiser=OptimiserConfig(learning_rate=options.learning_rate),
        schedule=ScheduleConfig(warmup=0.05, shape="cosine"),
        evaluate_every=max(1, options.steps // 10) if held_out else 0,
        early_stopping=EarlyStopping() if held_out else None,
        seed=options.seed,
    )
    with braid_errors():
        trainer: Trainer[TrainingBatch] = Trainer(
            nn.ModuleList(stacks.values()),
            loss_of,
            batches,
            config,
            on_progress=on_progress,
            evaluate=evaluate if held_out else None,
        )
        record = trainer.run()
    return Fitted(
        stacks,
        {
            **asdict(options),
            "steps_done": record.steps,
            "best_step": record.best_step,
            "tokens": texts.training.num_tokens,
            "seconds": record.seconds,
            "parameters": {
                who.name: sum(parameter.numel() for parameter in stack.parameters())
                for who, stack in stacks.items()
            },
        },
    )
