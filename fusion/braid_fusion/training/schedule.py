"""The learning rate as a function of progress. Knows neither steps nor time: progress is either's fraction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from braid_fusion.errors import TrainingConfigError


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Linear warm-up over the first ``warmup`` of the run, then ``shape`` from ``decay_from`` on down to
    ``floor`` of the peak. All are fractions."""

    warmup: float = 0.05
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    decay_from: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup", "decay_from", "floor"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise TrainingConfigError(
                    f"schedule.{name}: got {value}, expected a fraction between 0 and 1"
                )
        if self.shape not in ("cosine", "linear", "constant"):
            raise TrainingConfigError(
                f"schedule.shape: got {self.shape!r}, expected cosine, linear or constant"
            )


def learning_rate_factor(progress: float, config: ScheduleConfig) -> float:
    """What the peak learning rate is multiplied by, in [0, 1], at ``progress`` in [0, 1]."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return progress / config.warmup
    start = max(config.warmup, config.decay_from)
    if config.shape == "constant" or progress <= start:
        return 1.0
    remaining = (1.0 - progress) / (1.0 - start)
    if config.shape == "cosine":
        remaining = 0.5 * (1.0 - math.cos(math.pi * remaining))
    return config.floor + (1.0 - config.floor) * remaining
