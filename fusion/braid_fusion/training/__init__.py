"""Training, reusable: optimisers, schedule, data windows and the loop. Knows no model and no network."""

from braid_fusion.training.optimisers import Muon, OptimiserConfig, make_optimisers
from braid_fusion.training.schedule import ScheduleConfig, learning_rate_factor
from braid_fusion.training.trainer import (
    Evaluation,
    Progress,
    Trainer,
    TrainingConfig,
    TrainingDivergedError,
    TrainingRecord,
)
from braid_fusion.training.windows import TokenWindows

__all__ = [
    "Evaluation",
    "Muon",
    "OptimiserConfig",
    "Progress",
    "ScheduleConfig",
    "TokenWindows",
    "Trainer",
    "TrainingConfig",
    "TrainingDivergedError",
    "TrainingRecord",
    "learning_rate_factor",
    "make_optimisers",
]
