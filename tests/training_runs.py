"""A small language model with dropout and running means, windows to train it on, and a trainer for both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid_fusion.training import (
    EarlyStopping,
    OptimiserConfig,
    ScheduleConfig,
    TokenWindows,
    Trainer,
    TrainerConfig,
)

VOCABULARY, WIDTH, LENGTH = 13, 8, 5


class TinyModel(nn.Module):
    """Embedding, a hidden map with batch statistics and dropout, head; and one frozen parameter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.hidden = nn.Linear(WIDTH, WIDTH)
            self.norm = nn.BatchNorm1d(WIDTH)
            self.dropout = nn.Dropout(0.3)
            self.lm_head = nn.Linear(WIDTH, VOCABULARY)
            self.frozen = nn.Parameter(torch.randn(WIDTH), requires_grad=False)

    def loss(self, windows: Tensor) -> dict[str, Tensor]:
        states = self.dropout(self.norm(self.hidden(self.embedding(windows[:, :-1]) + self.frozen).mT)).mT
        loss = functional.cross_entropy(self.lm_head(states).flatten(0, 1), windows[:, 1:].flatten())
        return {"loss": loss, "half": loss.detach() / 2, "tokens": torch.tensor(windows[:, 1:].numel())}


def windows(seed: int = 3) -> TokenWindows:
    text = torch.randint(VOCABULARY, (60,), generator=torch.Generator().manual_seed(1))
    return TokenWindows(text, LENGTH, batch_size=3, seed=seed)


def everything(trainer: Trainer[Tensor]) -> dict[str, Any]:
    """What two equal runs have in common, in a form that `==` compares bit for bit."""
    state = trainer._state.content()
    compared: dict[str, Any] = _comparable(
        {**state, "history": trainer.history, "frozen": trainer.module.frozen}
    )
    return compared


def _comparable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return value


def tiny_trainer(
    folder: Path | None = None,
    *,
    muon: bool = False,
    model: TinyModel | None = None,
    order_seed: int = 3,
    on_progress: Callable[[Any], None] | None = None,
    settings: dict[str, Any] | None = None,
    tensorboard: Path | None = None,
    **config: Any,
) -> Trainer[Tensor]:
    """Everything fresh, as in another process; log and checkpoints in ``folder``."""
    model = model or TinyModel()
    defaults: dict[str, Any] = {
        "max_steps": 17,
        "optimiser": OptimiserConfig(
            learning_rate=0.02, weight_decay=0.1, matrix_learning_rate=0.02 if muon else None
        ),
        "schedule": ScheduleConfig(warmup=0.1),
        "accumulate": 2,
        "log_every": 1,
        "evaluate_every": 4,
        "early_stopping": EarlyStopping(patience=None),
        "checkpoint_every": 6,
        "keep_checkpoints": 9,
    }

    def evaluate() -> dict[str, float]:
        # A generator of everybody's is used here too, so that it has to be resumed as well.
        return {"loss": float(model.loss(next(iter(windows(7))))["loss"]), "noise": float(torch.rand(()))}

    ticks = iter(range(10**6))
    return Trainer(
        model,
        model.loss,
        windows(order_seed),
        TrainerConfig(**{**defaults, **config}),
        evaluate=evaluate,
        log_path=None if folder is None else folder / "log.jsonl",
        tensorboard_folder=tensorboard,
        checkpoint_folder=None if folder is None else folder / "checkpoints",
        on_progress=on_progress,
        settings=settings,
        clock=lambda: float(next(ticks)),
    )
