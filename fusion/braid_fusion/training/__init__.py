"""Training, reusable: optimisers, schedule, data, the loop and its checkpoints. Knows no model and no network."""

from braid_fusion.errors import TrainingDivergedError
from braid_fusion.training.config import EarlyStopping, TrainerConfig
from braid_fusion.training.epochs import EpochOrder, ResumableSource
from braid_fusion.training.items import ItemBatches
from braid_fusion.training.optimisers import Muon, OptimiserConfig, make_optimisers
from braid_fusion.training.peers import Peers, ProcessPeers
from braid_fusion.training.plot import plot_training
from braid_fusion.training.record import Evaluation, Progress, TrainingRecord
from braid_fusion.training.run_log import read_log
from braid_fusion.training.schedule import ScheduleConfig, learning_rate_factor
from braid_fusion.training.tensorboard import has_tensorboard
from braid_fusion.training.trainer import Trainer
from braid_fusion.training.windows import TokenWindows

__all__ = [
    "EarlyStopping",
    "EpochOrder",
    "Evaluation",
    "ItemBatches",
    "Muon",
    "OptimiserConfig",
    "Peers",
    "ProcessPeers",
    "Progress",
    "ResumableSource",
    "ScheduleConfig",
    "TokenWindows",
    "Trainer",
    "TrainerConfig",
    "TrainingDivergedError",
    "TrainingRecord",
    "has_tensorboard",
    "learning_rate_factor",
    "make_optimisers",
    "plot_training",
    "read_log",
]
