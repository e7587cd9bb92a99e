"""Training of grafted layers in process, on texts; the base model stays as it is. The loop is the trainer core's.

What is written into ``output_dir``: ``log.jsonl``, ``checkpoints/`` (the grafted layers and all that a resumed run
needs, no base parameters), ``fusion_weights.safetensors`` at the end, and ``training.png`` where matplotlib is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from braid_fusion.errors import TrainingConfigError, TrainingDataError
from braid_fusion.grafting.dataset import describe_items, pad_batch
from braid_fusion.grafting.graft_loss import evaluate_graft, graft_loss
from braid_fusion.grafting.training_config import TrainingConfig
from braid_fusion.training import Evaluation, ItemBatches, Progress, Trainer, TrainingRecord, plot_training
from braid_fusion.training.checkpoint import steps_in
from braid_fusion.training.items import Items

logger = logging.getLogger(__name__)

LOG_FILE, CHECKPOINT_FOLDER, WEIGHTS_FILE, PLOT_FILE = (
    "log.jsonl",
    "checkpoints",
    "fusion_weights.safetensors",
    "training.png",
)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training did.

    ``final_loss`` is the training loss at the end, smoothed, auxiliary losses included; ``best_loss`` the lowest of
    the evaluations, of the language model alone, None without any. ``history`` holds the log's lines. Paths are None
    where nothing was written.
    """

    steps: int
    seconds: float
    stopped_by: str
    final_loss: float
    best_loss: float | None
    best_step: int | None
    num_parameters: int
    evaluations: tuple[Evaluation, ...]
    history: list[dict[str, Any]]
    log_path: Path | None = None
    checkpoint_path: Path | None = None
    weights_path: Path | None = None
    plot_path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }


class FusionTrainer:
    """Trains the grafted layers of a model, and nothing else.

    Args:
        model: a `ResonanceWrapper`. Its base parameters get no gradient while it trains, even where it was made with
            ``freeze_base=False``.
        train_dataset: from `create_fusion_dataset`, or any dataset with numbered items of ``input_ids`` (and
            ``attention_mask``, ``labels``), tensors or lists.
        tokenizer: says what token to pad with.
        eval_dataset: what evaluations are made on; alike.
        on_progress: called after every step.

    Raises: TrainingConfigError for a model without grafted layers, early stopping without ``eval_dataset``, or a
        precision that the device can't do; TrainingDataError for items longer than the model's context.
    """

    def __init__(
        self,
        model: Any,
        train_dataset: Items[Mapping[str, Any]],
        tokenizer: Any,
        config: TrainingConfig | None = None,
        eval_dataset: Items[Mapping[str, Any]] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.model = model
        self.config = config = config or TrainingConfig()
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self._on_progress = on_progress
        if not isinstance(model, nn.Module) or not hasattr(model, "fusion_parameters"):
            raise TrainingConfigError(
                f"model: got {type(model).__name__}, expected a ResonanceWrapper, with grafted layers"
            )
        if config.early_stopping_patience is not None and eval_dataset is None:
            raise TrainingConfigError(
                f"early_stopping_patience: got {config.early_stopping_patience} without eval_dataset, expected None"
            )
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad_id = 0 if pad_id is None else int(pad_id)
        self._context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self._weights = {"coherence": config.coherence_loss_weight, "kuramoto": config.kuramoto_loss_weight}
        self._device = next(model.parameters()).device

    def train(self, resume_from: Path | str | None = None) -> TrainingResult:
        """Train to the end; then the model is in evaluation mode, and torch's global generators are as before.

        Args:
            resume_from: a checkpoint, a folder of checkpoints, or the ``output_dir`` of a run that was broken off;
                goes on as if it hadn't been.

        Raises: TrainingError of each kind; NonFiniteStateError from the model; OSError from writing.
        """
        folder = None if self.config.output_dir is None else Path(self.config.output_dir)
        device = [self._device] if self._device.type == "cuda" else []
        with _only_grafts_train(self.model), torch.random.fork_rng(device):
            torch.manual_seed(self.config.seed)
            trainer = self._trainer(folder)
            record = trainer.run(None if resume_from is None else _checkpoints_in(Path(resume_from)))
        return self._result(record, trainer.history, folder)

    def evaluate(self) -> dict[str, float]:
        """Means over ``eval_dataset``: "loss" in nats per token, of the language model alone, and "coherence" and
        "kuramoto_order" where layers measure them. Raises: TrainingConfigError without ``eval_dataset``."""
        if self.eval_dataset is None:
            raise TrainingConfigError("eval_dataset: got None, expected a dataset to evaluate on")
        was_training = self.model.training
        self.model.eval()
        try:
            return evaluate_graft(self.model, self._eval_batches(self.eval_dataset))
        finally:
            self.model.train(was_training)

    def _trainer(self, folder: Path | None) -> Trainer[dict[str, Tensor]]:
        items, config = self.train_dataset, self.config
        batches = ItemBatches(items, config.batch_size, self._collate, config.seed, describe_items(items))
        graft = getattr(self.model, "fusion_config", None)
        return Trainer(
            self.model,
            lambda batch: graft_loss(self.model, batch, self._weights),
            batches,
            config.trainer_config(evaluates=self.eval_dataset is not None),
            on_progress=self._on_progress,
            evaluate=None if self.eval_dataset is None else self.evaluate,
            log_path=None if folder is None else folder / LOG_FILE,
            checkpoint_folder=None if folder is None else folder / CHECKPOINT_FOLDER,
            settings={
                "auxiliary_loss_weights": self._weights,
                "fusion_config": {} if graft is None else graft.to_dict(),
            },
            progress_bar=config.progress_bar,
        )

    def _eval_batches(self, items: Items[Mapping[str, Any]]) -> Iterator[dict[str, Tensor]]:
        size = self.config.batch_size
        for start in range(0, len(items), size):
            yield self._collate([items[number] for number in range(start, min(start + size, len(items)))])

    def _collate(self, items: Any) -> dict[str, Tensor]:
        batch = pad_batch(items, self._pad_id)
        length = batch["input_ids"].shape[1]
        if self._context is not None and length > self._context:
            raise TrainingDataError(
                f"item: got {length} tokens, expected at most {self._context}, the model's context; "
                "create_fusion_dataset's max_length cuts texts"
            )
        return {name: column.to(self._device) for name, column in batch.items()}

    def _result(
        self, record: TrainingRecord, history: list[dict[str, Any]], folder: Path | None
    ) -> TrainingResult:
        weights_path = None
        if folder is not None:
            weights_path = folder / WEIGHTS_FILE
            self.model.save_fusion_weights(weights_path)
        best = min(record.evaluations, key=lambda evaluation: evaluation.values["loss"], default=None)
        checkpoints = [] if folder is None else steps_in(folder / CHECKPOINT_FOLDER)
        return TrainingResult(
            steps=record.steps,
            seconds=record.seconds,
            stopped_by=record.stopped_by,
            final_loss=record.final_loss,
            best_loss=None if best is None else best.values["loss"],
            best_step=None if best is None else best.step,
            num_parameters=record.num_parameters,
            evaluations=record.evaluations,
            history=history,
            log_path=None if folder is None else folder / LOG_FILE,
            checkpoint_path=checkpoints[-1][1] if checkpoints else None,
            weights_path=weights_path,
            plot_path=None if folder is None else _plot(history, folder / PLOT_FILE),
        )


@contextmanager
def _only_grafts_train(model: Any) -> Iterator[None]:
    """Within, exactly the grafted layers' parameters ask for gradients."""
    grafted = {id(parameter) for parameter in model.fusion_parameters()}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in grafted)
        yield
    finally:
        for parameter, had_gradient in before:
            parameter.requires_grad_(had_gradient)


def _checkpoints_in(path: Path) -> Path:
    inner = path / CHECKPOINT_FOLDER
    return inner if inner.is_dir() else path


def _plot(history: list[dict[str, Any]], path: Path) -> Path | None:
    if find_spec("matplotlib") is None:
        logger.warning("no %s: matplotlib is not installed; pip install '.[plots]' brings it", path)
        return None
    plot_training(history, path)
    return path
