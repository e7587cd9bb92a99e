"""What the training of grafted layers is told, under the names of the grafting document
("Training Fusion Layers"). Trains nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from braid_fusion.errors import TrainingConfigError
from braid_fusion.training import EarlyStopping, OptimiserConfig, ScheduleConfig, TrainerConfig
from braid_fusion.training.config import PrecisionName


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """AdamW with linear warm-up and a cosine down to ``min_learning_rate_ratio`` of the peak.

    Args:
        learning_rate: at the peak.
        batch_size: items per batch; a step takes ``gradient_accumulation_steps`` of them.
        warmup_ratio: of the steps; ``warmup_steps``, where given, takes its place.
        weight_decay: of matrices; vectors and scalars have none.
        max_grad_norm: to which gradients are clipped; None: never.
        precision: of the forward: float32, bf16, or on CUDA fp16. Parameters stay as they are.
        eval_every: steps between evaluations; 0: only at the end.
        early_stopping_patience: evaluations in a row without a gain of more than ``early_stopping_min_delta`` in the
            loss, after which training ends; None: never.
        keep_best: end with the weights of the best evaluation rather than the last ones.
        checkpoint_every: steps between checkpoints; 0: only at the end. The last ``keep_checkpoints`` are kept.
        output_dir: for log, checkpoints, weights and plot; None: nothing is written.
        seed: of the data's order and of dropout.
        coherence_loss_weight: of 1 − mean coherence within the loss.
        kuramoto_loss_weight: of 1 − mean order parameter within the loss.
        progress_bar: None: where standard error is a terminal.

    Raises: TrainingConfigError, naming the key, what it got and what it expected.
    """

    learning_rate: float = 1e-4
    max_steps: int = 5000
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    warmup_ratio: float = 0.05
    warmup_steps: int | None = None
    min_learning_rate_ratio: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = 1.0
    precision: PrecisionName = "float32"
    eval_every: int = 0
    early_stopping_patience: int | None = None
    early_stopping_min_delta: float = 0.0
    keep_best: bool = True
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 10
    output_dir: Path | str | None = None
    seed: int = 0
    coherence_loss_weight: float = 0.0
    kuramoto_loss_weight: float = 0.0
    progress_bar: bool | None = None

    def __post_init__(self) -> None:
        _check_whole(self, 1, "max_steps", "batch_size", "gradient_accumulation_steps", "keep_checkpoints")
        _check_whole(self, 1, "log_every", "early_stopping_patience")
        _check_whole(self, 0, "eval_every", "checkpoint_every", "warmup_steps", "seed")
        for key in ("learning_rate", "max_grad_norm"):
            if getattr(self, key) is not None or key == "learning_rate":
                _check_number(key, getattr(self, key), above=True)
        for key in (
            "weight_decay",
            "coherence_loss_weight",
            "kuramoto_loss_weight",
            "early_stopping_min_delta",
        ):
            _check_number(key, getattr(self, key))
        for key in ("warmup_ratio", "min_learning_rate_ratio"):
            _check_number(key, getattr(self, key), high=1.0)
        if self.warmup_steps is not None and self.warmup_steps > self.max_steps:
            raise TrainingConfigError(
                f"warmup_steps: got {self.warmup_steps}, expected at most max_steps, {self.max_steps}"
            )
        if (
            not isinstance(self.betas, (tuple, list))
            or len(self.betas) != 2
            or not all(0.0 <= beta < 1.0 for beta in self.betas)
        ):
            raise TrainingConfigError(f"betas: got {self.betas!r}, expected two numbers in [0, 1)")
        if self.early_stopping_patience is not None and not self.eval_every:
            raise TrainingConfigError(
                f"early_stopping_patience: got {self.early_stopping_patience} with eval_every 0, expected None, "
                "or evaluations every so many steps"
            )
        self.trainer_config(evaluates=False)  # for what it checks

    def trainer_config(self, *, evaluates: bool) -> TrainerConfig:
        """The same for the trainer core."""
        warmup = self.warmup_ratio if self.warmup_steps is None else self.warmup_steps / self.max_steps
        stopping = None
        if evaluates and (self.keep_best or self.early_stopping_patience is not None):
            stopping = EarlyStopping(
                self.early_stopping_patience, self.early_stopping_min_delta, put_back=self.keep_best
            )
        return TrainerConfig(
            max_steps=self.max_steps,
            optimiser=OptimiserConfig(self.learning_rate, self.betas, self.weight_decay),
            schedule=ScheduleConfig(warmup=warmup, shape="cosine", floor=self.min_learning_rate_ratio),
            clip_norm=self.max_grad_norm,
            accumulate=self.gradient_accumulation_steps,
            precision=self.precision,
            log_every=self.log_every,
            evaluate_every=self.eval_every,
            early_stopping=stopping,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            seed=self.seed,
        )


def _check_whole(config: TrainingConfig, lowest: int, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if value is None and key in ("early_stopping_patience", "warmup_steps"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise TrainingConfigError(f"{key}: got {value!r}, expected a whole number from {lowest} on")


def _check_number(key: str, value: object, *, above: bool = False, high: float = math.inf) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not 0.0 <= value <= high or (above and value == 0.0):  # type: ignore[operator]
        wanted = "a number above 0" if above else f"a number from 0 to {high:g}"
        raise TrainingConfigError(f"{key}: got {value!r}, expected {wanted}")
