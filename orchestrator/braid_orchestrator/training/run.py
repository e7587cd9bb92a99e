"""One training run of a braid's fusion modules: from texts to a version of weights.

Knows neither how shards are reached nor who serves the version.

Files of a run, in its folder: ``checkpoints/``, ``log.jsonl``, ``tensorboard/`` where tensorboardX is installed,
``training.png`` where matplotlib is, and ``weights/NAME`` with the version.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from braid_fusion.errors import TrainingError
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_fusion.training import (
    EarlyStopping,
    OptimiserConfig,
    Progress,
    ScheduleConfig,
    Trainer,
    TrainerConfig,
    TrainingRecord,
    has_tensorboard,
    make_optimisers,
    plot_training,
)
from braid_fusion.training.checkpoint import CheckpointFolder, last_checkpoint
from braid_fusion.training.config import PrecisionName
from braid_fusion.training.peers import NoPeers, Peers
from braid_fusion.training.precision import Precision
from braid_fusion.training.trainer import never
from braid_fusion.weights import CARD_FILE, refuse_what_is_no_version, save_stack
from braid_orchestrator.training.data import EvaluationBatches, TextBatches, TrainingTexts
from braid_orchestrator.training.loss import Batch, braid_loss, check_shards
from braid_orchestrator.training.ports import TrainingShard
from braid_orchestrator.training.storing import CHECKPOINTS, TENSORBOARD, WEIGHTS
from braid_rpc.errors import ConflictError, ContextLengthError, InvalidRequestError
from braid_services.fusion.translation import braid_errors
from braid_services.fusion.version_names import UNTRAINED, check_new_name

_log = logging.getLogger(__name__)

LOG_FILE, PLOT_FILE = "log.jsonl", "training.png"
# Without a number given: so many times in a run.
_EVALUATIONS, _CHECKPOINTS = 10, 5


@dataclass(frozen=True, slots=True)
class RunOptions:
    """A step takes ``accumulate`` batches of ``batch_size`` windows of ``window`` tokens. ``evaluate_every`` and
    ``checkpoint_every`` in steps; None: some times in a run. ``patience``: evaluations in a row without a gain after
    which the run ends; None: never. In the end the weights of the best evaluation count."""

    steps: int = 500
    window: int = 128
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip_norm: float | None = 1.0
    precision: PrecisionName = "float32"
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    patience: int | None = 3
    seed: int = 0
    max_seconds: float | None = None

    def trainer_config(self, has_held_out: bool) -> TrainerConfig:
        """AdamW throughout: Muon would blow up connections that start at zero. Raises: TrainingConfigError."""
        every = self.evaluate_every or max(1, self.steps // _EVALUATIONS)
        return TrainerConfig(
            max_steps=self.steps,
            max_seconds=self.max_seconds,
            optimiser=OptimiserConfig(learning_rate=self.learning_rate, weight_decay=self.weight_decay),
            schedule=ScheduleConfig(warmup=self.warmup, shape="cosine"),
            clip_norm=self.clip_norm,
            accumulate=self.accumulate,
            precision=self.precision,
            log_every=max(1, min(20, self.steps // 50)),
            evaluate_every=every if has_held_out else 0,
            early_stopping=EarlyStopping(self.patience) if has_held_out else None,
            checkpoint_every=self.checkpoint_every or max(1, self.steps // _CHECKPOINTS),
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """``weights`` is the version's folder, None for a run that was interrupted; ``held_out`` what was measured with
    these weights, if anything was held out."""

    weights: Path | None
    record: TrainingRecord
    held_out: Mapping[str, float] | None


def train_braid(
    shards: Sequence[TrainingShard],
    stack: FusionStack,
    texts: TrainingTexts,
    options: RunOptions,
    folder: Path,
    *,
    version: str,
    resume: bool = False,
    tensorboard: Path | None = None,
    peers: Peers | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    progress_bar: bool | None = None,
    stop_wanted: Callable[[], bool] = never,
) -> Outcome:
    """Train a stack in place and write its version.

    Args:
        shards: one per shard of the stack's plan, in its order.
        folder: of the run; without ``resume`` there must be no run in it.
        tensorboard: where events for TensorBoard go; None: into the run's folder, if they can be written here.
        peers: workers that train together, each with shards of its own choice; all see the folder.
        stop_wanted: asked before every step; True ends the run as Ctrl-C does.

    Raises: as `check_run`, before anything is run; TrainingError of each kind; BraidError of a shard that stays
        away; OSError from writing.
    """
    check_run(shards, stack, options, folder, version=version, resume=resume)
    if tensorboard is None and has_tensorboard():
        tensorboard = folder / TENSORBOARD
    weights = folder / WEIGHTS / version
    peers = peers or NoPeers()
    batches = TextBatches(texts.training, options.window, options.batch_size, options.seed)
    if peers.count > 1:
        batches = batches.share(peers.rank, peers.count)
    held_out = None
    if texts.held_out is not None:
        held_out = EvaluationBatches(texts.held_out, options.window, options.batch_size)
    loss_of = braid_loss(shards, stack)
    checkpoints = folder / CHECKPOINTS
    trainer: Trainer[Batch] = Trainer(
        stack,
        loss_of,
        batches,
        options.trainer_config(held_out is not None),
        on_progress=on_progress,
        evaluate=None if held_out is None else lambda: evaluate(loss_of, held_out),
        log_path=folder / LOG_FILE,
        tensorboard_folder=tensorboard,
        checkpoint_folder=checkpoints,
        settings={
            "plan": stack.plan.hash(),
            # The same model gives other numbers in another precision.
            "shards": {
                shard.name: {"dtype": shard.card.dtype, "quantization": shard.card.quantization}
                for shard in shards
            },
            "held_out": None if texts.held_out is None else texts.held_out.fingerprint,
        },
        progress_bar=progress_bar,
        peers=peers,
        stop_wanted=stop_wanted,
    )
    folder.mkdir(parents=True, exist_ok=True)
    record = trainer.run(resume_from=checkpoints if resume else None)
    if record.stopped_by == "interrupt":
        return Outcome(None, record, None)
    if peers.rank == 0:
        with braid_errors():
            save_stack(stack, weights, json.loads(json.dumps(record.to_dict())))
        _plot(folder)
    best = [one for one in record.evaluations if record.best_step in (None, one.step)]
    return Outcome(weights, record, best[-1].values if best else None)


def check_run(
    shards: Sequence[TrainingShard],
    stack: FusionStack,
    options: RunOptions,
    folder: Path,
    *,
    version: str,
    resume: bool,
) -> None:
    """All that can be said of a run without its texts, in a moment; arguments as for `train_braid`.

    Raises: as `check_place`; TrainingConfigError; UnsupportedModelError for shards that have no gradients;
        ContextLengthError.
    """
    check_place(folder, version=version, resume=resume)
    config = options.trainer_config(has_held_out=False)
    make_optimisers(stack, config.optimiser)
    Precision(config.precision, list(stack.parameters()))
    check_shards(shards, stack.plan)
    check_window(shards, stack.plan, options.window)


def check_place(folder: Path, *, version: str, resume: bool) -> None:
    """All that can be said of a run without its shards either; arguments as for `train_braid`.

    Raises: InvalidRequestError for a name that no service would take; CheckpointMismatchError for a folder with
        another run in it, NoCheckpointError for one without any to go on with; ConflictError where the version's
        folder is something else, or is there before its run.
    """
    check_new_name(version)
    if version == UNTRAINED:
        raise InvalidRequestError(
            f"version: got {version!r}, expected another name: the modules as they are before any training have it"
        )
    checkpoints, weights = folder / CHECKPOINTS, folder / WEIGHTS / version
    if resume:
        last_checkpoint(checkpoints)
    else:
        CheckpointFolder(checkpoints, keep=1).refuse_another_run()
    with braid_errors():
        refuse_what_is_no_version(weights)
    if (weights / CARD_FILE).exists() and not resume:
        raise ConflictError(
            f"{weights}: got a version of another run, expected none for a run from the start: name this one's "
            "otherwise (--version), choose another folder (--into), or remove it"
        )


def _plot(folder: Path) -> None:
    """Where matplotlib is. The run is done and its weights are written: a picture that fails is told, and no more."""
    if find_spec("matplotlib") is None:
        return
    try:
        plot_training(folder / LOG_FILE, folder / PLOT_FILE)
    except (TrainingError, OSError) as error:
        _log.warning("no plot of the run: %s", error)


def evaluate(
    loss_of: Callable[[Batch], Mapping[str, torch.Tensor]], batches: EvaluationBatches
) -> dict[str, float]:
    """Means over all tokens of what the loss gives, under the same names."""
    sums: dict[str, float] = {}
    total = 0.0
    for batch in batches:
        if not batch.num_targets:
            continue
        figures = {name: float(value) for name, value in loss_of(batch).items()}
        count = figures.pop("tokens")
        total += count
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value * count
    return {name: value / total for name, value in sums.items()}


def check_window(shards: Sequence[TrainingShard], plan: BraidPlan, window: int) -> None:
    """Only shards that read the anchor's tokens: what takes too many of another tokenizer's is run in parts."""
    lane = plan.lane_of[plan.anchor]
    short = [
        shard
        for shard, own in zip(shards, plan.lane_of, strict=True)
        if own == lane and shard.card.context_length < window
    ]
    if short:
        raise ContextLengthError(
            f"window: got {window} tokens, expected at most {short[0].card.context_length}, the context of shard "
            f"{short[0].name!r}"
        )
