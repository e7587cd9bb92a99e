"""Which evaluation was the best, and whether to stop. Knows neither weights nor files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from braid_fusion.errors import TrainingConfigError
from braid_fusion.training.config import EarlyStopping


class StopWatch:
    """Follows one figure from evaluation to evaluation."""

    def __init__(self, config: EarlyStopping) -> None:
        self._config = config
        self.best_step: int | None = None
        self.best_value: float | None = None
        self.without_gain = 0

    def note(self, step: int, values: Mapping[str, float]) -> bool:
        """Whether this evaluation is the best so far. A figure that is no finite number is no gain.

        Raises: TrainingConfigError if the figure isn't among the values.
        """
        name = self._config.figure
        if name not in values:
            raise TrainingConfigError(
                f"early_stopping.figure: got {name!r}, expected one of the evaluation's: {', '.join(values)}"
            )
        value = float(values[name])
        if self._is_gain(value):
            self.best_step, self.best_value, self.without_gain = step, value, 0
            return True
        self.without_gain += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self._config.patience is not None and self.without_gain >= self._config.patience

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "best_step": self.best_step,
            "best_value": self.best_value,
            "without_gain": self.without_gain,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.best_step, self.best_value = state["best_step"], state["best_value"]
        self.without_gain = state["without_gain"]

    def _is_gain(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best_value is None:
            return True
        gain = value - self.best_value if self._config.higher_is_better else self.best_value - value
        return gain > self._config.min_delta
