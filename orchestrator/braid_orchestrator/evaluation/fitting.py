"""Baselines that are learned: mixes of the shards' probabilities by weights for all tokens, or by a gate per token.

They are braids without points, with the readouts ``mixture`` and ``gate``: what a braid can do without any exchange
of states. Both learn from the same passes through the shards, the gate by gradients; the weights for all tokens are
the best that there are for what was seen.

Shapes: R rows whose next token counts, S shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

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
from braid_orchestrator.evaluation.mixes import global_log_weights
from braid_orchestrator.evaluation.scoring import GATE, GLOBAL, Predictor, outputs_plan
from braid_orchestrator.inprocess.whole_lanes import CutWarning
from braid_orchestrator.training.braid_pass import PassEnds, read_out, run_to_ends
from braid_orchestrator.training.data import EvaluationBatches, TextBatches, TrainingBatch, TrainingTexts
from braid_orchestrator.training.ports import TrainingShard
from braid_services.fusion.translation import braid_errors


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Each step takes ``batch_size`` windows of ``window`` tokens, of which at most ``windows_at_once`` (None: all)
    are run together. With held-out text the gate's best of ten evaluations counts."""

    steps: int = 200
    window: int = 128
    batch_size: int = 8
    windows_at_once: int | None = None
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
    gate = FusionStack(outputs_plan(plan, "gate"))
    at_once = min(options.windows_at_once or options.batch_size, options.batch_size)
    batch_size = max(size for size in range(1, at_once + 1) if options.batch_size % size == 0)
    accumulate = options.batch_size // batch_size
    name = "fit" if texts.held_out is None else "fit, without what is held out of it"
    batches = TextBatches(texts.training, options.window, batch_size, options.seed, name=name)
    held_out = None
    if texts.held_out is not None:
        held_out = EvaluationBatches(texts.held_out, options.window, batch_size)
    on_cut = CutWarning()
    seen: list[Tensor] = []  # (R, S) each: what the shards gave a batch's tokens

    def run(batch: TrainingBatch) -> PassEnds:
        with torch.no_grad():  # without points, nothing in a shard is trained
            return run_to_ends(
                shards,
                gate,
                batch.token_ids_T,
                batch.lengths,
                batch.targets_R,
                batch.loss_rows_R.tolist(),
                on_cut=on_cut,
            )

    def loss_of(batch: TrainingBatch) -> dict[str, Tensor]:
        ends = run(batch)
        if torch.is_grad_enabled():  # else the trainer only looks
            seen.append(ends.target_logprobs_RA)
        loss = -read_out(gate, ends).target_logprobs.mean()
        return {"loss": loss, "tokens": torch.tensor(float(batch.num_targets))}

    def evaluate() -> dict[str, float]:
        total, count = 0.0, 0
        for batch in held_out or ():
            if batch.num_targets:
                total -= float(read_out(gate, run(batch)).target_logprobs.sum())
                count += batch.num_targets
        return {"loss": total / max(1, count)}

    config = TrainerConfig(
        max_steps=options.steps,
        accumulate=accumulate,
        optimiser=OptimiserConfig(learning_rate=options.learning_rate),
        schedule=ScheduleConfig(warmup=0.05, shape="cosine"),
        evaluate_every=max(1, options.steps // 10) if held_out else 0,
        early_stopping=EarlyStopping() if held_out else None,
        seed=options.seed,
    )
    with braid_errors():
        trainer: Trainer[TrainingBatch] = Trainer(
            gate,
            loss_of,
            batches,
            config,
            on_progress=on_progress,
            evaluate=evaluate if held_out else None,
        )
        record = trainer.run()
    mixture = FusionStack(outputs_plan(plan, "mixture"))
    with torch.no_grad():
        next(mixture.parameters()).copy_(global_log_weights(torch.cat(seen)))
    stacks = {GLOBAL: mixture, GATE: gate}
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
