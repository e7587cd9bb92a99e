"""What training is told is checked when it is told, by key."""

from __future__ import annotations

from typing import Any

import pytest

from braid_fusion import TrainingConfig
from braid_fusion.errors import FusionError, TrainingConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, expected a number above 0"),
        ({"learning_rate": "1e-4"}, "learning_rate: got '1e-4', expected a number above 0"),
        ({"max_steps": 0}, "max_steps: got 0, expected a whole number from 1 on"),
        ({"max_steps": 1.5}, "max_steps: got 1.5, expected a whole number from 1 on"),
        ({"batch_size": True}, "batch_size: got True, expected a whole number from 1 on"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: got 0, expected"),
        ({"warmup_ratio": 1.5}, "warmup_ratio: got 1.5, expected a number from 0 to 1"),
        ({"warmup_steps": 9, "max_steps": 8}, "warmup_steps: got 9, expected at most max_steps, 8"),
        ({"min_learning_rate_ratio": -0.1}, "min_learning_rate_ratio: got -0.1, expected"),
        ({"weight_decay": float("nan")}, "weight_decay: got nan, expected a number from 0"),
        ({"betas": (0.9, 1.0)}, "betas: got (0.9, 1.0), expected two numbers in [0, 1)"),
        ({"betas": 0.9}, "betas: got 0.9, expected two numbers"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: got 0.0, expected a number above 0"),
        ({"precision": "int8"}, "precision: got 'int8', expected one of float32, bf16, fp16"),
        ({"eval_every": -1}, "eval_every: got -1, expected a whole number from 0 on"),
        ({"early_stopping_patience": 0, "eval_every": 1}, "early_stopping_patience: got 0, expected"),
        ({"early_stopping_patience": 2}, "early_stopping_patience: got 2 with eval_every 0, expected None"),
        ({"early_stopping_min_delta": -1}, "early_stopping_min_delta: got -1, expected"),
        ({"checkpoint_every": -1}, "checkpoint_every: got -1, expected"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: got 0, expected"),
        ({"log_every": 0}, "log_every: got 0, expected"),
        ({"seed": -1}, "seed: got -1, expected"),
        ({"coherence_loss_weight": -0.1}, "coherence_loss_weight: got -0.1, expected"),
        ({"kuramoto_loss_weight": float("inf")}, "kuramoto_loss_weight: got inf, expected"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingConfigError) as refused:
        TrainingConfig(**values)
    assert message in str(refused.value)
    assert isinstance(refused.value, FusionError)


def test_the_core_gets_what_was_said() -> None:
    config = TrainingConfig(
        learning_rate=0.5,
        max_steps=40,
        gradient_accumulation_steps=3,
        warmup_steps=10,
        min_learning_rate_ratio=0.1,
        weight_decay=0.2,
        max_grad_norm=None,
        precision="bf16",
        eval_every=4,
        early_stopping_patience=2,
        early_stopping_min_delta=0.01,
        keep_best=False,
    )
    core = config.trainer_config(evaluates=True)
    assert (core.max_steps, core.accumulate, core.clip_norm, core.precision) == (40, 3, None, "bf16")
    assert (core.optimiser.learning_rate, core.optimiser.weight_decay) == (0.5, 0.2)
    assert core.optimiser.matrix_learning_rate is None
    assert (core.schedule.warmup, core.schedule.shape, core.schedule.floor) == (0.25, "cosine", 0.1)
    assert core.early_stopping is not None
    assert (core.early_stopping.patience, core.early_stopping.min_delta) == (2, 0.01)
    assert not core.early_stopping.put_back
    assert config.trainer_config(evaluates=False).early_stopping is None
    assert TrainingConfig(keep_best=False).trainer_config(evaluates=True).early_stopping is None
