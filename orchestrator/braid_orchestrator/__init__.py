"""The orchestrator: drives shards in lock step, fuses their states, and answers users.

In process: ``from braid_orchestrator import BraidedLLM, ModelWrapper``. They are fetched on first use, so that
importing the configuration alone needs no torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from braid_orchestrator.inprocess.braided import BraidedLLM
    from braid_orchestrator.inprocess.deciding import train_decider
    from braid_orchestrator.inprocess.fusion_training import train_fusion_layers
    from braid_orchestrator.inprocess.measuring import evaluate, measure_answerers
    from braid_orchestrator.inprocess.model_wrapper import ModelWrapper

# As in `braid_services`, and for the calling side too: the engine's thread reads its sockets itself.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

__all__ = [
    "BraidedLLM",
    "ModelWrapper",
    "evaluate",
    "measure_answerers",
    "train_decider",
    "train_fusion_layers",
]

_HOME = {
    "BraidedLLM": "inprocess.braided",
    "ModelWrapper": "inprocess.model_wrapper",
    "evaluate": "inprocess.measuring",
    "measure_answerers": "inprocess.measuring",
    "train_decider": "inprocess.deciding",
    "train_fusion_layers": "inprocess.fusion_training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
