"""What a training run is told: numbers, schedule, precision, evaluation, stopping, checkpoints. Trains nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from braid_fusion.errors import TrainingConfigError
from braid_fusion.training.optimisers import OptimiserConfig
from braid_fusion.training.schedule import ScheduleConfig

PrecisionName = Literal["float32", "bf16", "fp16"]

# What may differ between a run and the checkpoint that it is resumed from: none of it changes a parameter.
_FREE_FIELDS = ("log_every", "checkpoint_every", "keep_checkpoints")


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Keeps the weights of the best evaluation, and ends the run after ``patience`` evaluations in a row without
    a gain (None: never). A gain is an improvement of ``figure`` by more than ``min_delta`` over the best so far.
    At the end the best weights are put back, unless ``put_back`` is False."""

    patience: int | None = 3
    min_delta: float = 0.0
    figure: str = "loss"
    higher_is_better: bool = False
    put_back: bool = True

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise TrainingConfigError(
                f"early_stopping.patience: got {self.patience}, expected at least 1, or None"
            )
        if not 0.0 <= self.min_delta < math.inf:
            raise TrainingConfigError(
                f"early_stopping.min_delta: got {self.min_delta}, expected a finite number from 0 on"
            )


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """``max_seconds`` None: steps alone decide. Evaluations come every ``evaluate_every`` steps (0: only at the
    end), log lines every ``log_every``, checkpoints every ``checkpoint_every`` (0: only at the end), of which the
    last ``keep_checkpoints`` are kept. One step takes ``accumulate`` batches. ``precision`` is what the loss is
    computed in; parameters and optimisers stay as they are. ``seed`` is of what is random in a batch, such as
    dropout, not of the batches' order, which is the source's."""

    max_steps: int
    max_seconds: float | None = None
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float | None = 1.0
    accumulate: int = 1
    precision: PrecisionName = "float32"
    log_every: int = 20
    evaluate_every: int = 0
    early_stopping: EarlyStopping | None = None
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        lowest_of = {
            "max_steps": 1,
            "accumulate": 1,
            "log_every": 1,
            "evaluate_every": 0,
            "checkpoint_every": 0,
            "keep_checkpoints": 1,
        }
        for name, lowest in lowest_of.items():
            if not getattr(self, name) >= lowest:  # NaN is below nothing
                raise TrainingConfigError(
                    f"training.{name}: got {getattr(self, name)}, expected at least {lowest}"
                )
        for name in ("max_seconds", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise TrainingConfigError(
                    f"training.{name}: got {value}, expected a positive finite number, or None"
                )
        if self.precision not in get_args(PrecisionName):
            raise TrainingConfigError(
                f"training.precision: got {self.precision!r}, expected one of {', '.join(get_args(PrecisionName))}"
            )

    def decisive(self, num_workers: int = 1) -> dict[str, Any]:
        """The settings that decide what comes out, as plain values: what a checkpoint belongs to.

        In the place of ``accumulate``, a worker's share, stand the batches that all workers take per step.
        """
        values = asdict(self)
        for name in _FREE_FIELDS:
            del values[name]
        values["batches_per_step"] = values.pop("accumulate") * num_workers
        return plain(values)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same as JSON gives it back, so that what was stored compares equal. Raises: TypeError for other values."""
    copied: dict[str, Any] = json.loads(json.dumps(values))
    return copied
