"""What a training run says of itself: progress, evaluations, and the record that goes into weight cards."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is. ``fraction`` is of steps or of time, whichever is further; ``loss`` is smoothed."""

    step: int
    fraction: float
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the evaluation function said after ``step`` steps."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a run was and did; goes into weight cards as it is.

    ``stopped_by`` is "steps", "seconds", "early_stopping" or "interrupt". With early stopping, ``best_step`` and
    ``best_value`` are of the best evaluation, whose weights the module then has (not after an interrupt, nor where
    they weren't to be put back).
    """

    steps: int
    seconds: float
    stopped_by: str
    final_loss: float
    num_parameters: int
    config: dict[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    best_step: int | None = None
    best_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
