"""The training loop: steps, schedule, clipping, evaluation, log. Knows no model: the loss is a function.

A run ends after a number of steps or a number of seconds, whichever is first, and the learning rate follows
whichever is further on, so that a slow machine ends in time with a finished schedule.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from braid_fusion.training.optimisers import OptimiserConfig, make_optimisers
from braid_fusion.training.schedule import ScheduleConfig, learning_rate_factor

BatchT = TypeVar("BatchT")


class TrainingDivergedError(ArithmeticError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """``max_seconds`` None: steps alone decide. Evaluations come every ``evaluate_every`` steps (0: only at the
    end), log lines every ``log_every``. One step takes ``accumulate`` batches."""

    max_steps: int
    max_seconds: float | None = None
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float | None = 1.0
    accumulate: int = 1
    log_every: int = 20
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("max_steps", 1), ("accumulate", 1), ("log_every", 1), ("evaluate_every", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"training.{name}: got {getattr(self, name)}, expected at least {lowest}")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"training.max_seconds: got {self.max_seconds}, expected a positive number")


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
    """What a run was and did; goes into weight cards as it is."""

    steps: int
    seconds: float
    stopped_by: str
    final_loss: float
    num_parameters: int
    config: dict[str, Any]
    evaluations: tuple[Evaluation, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Trainer(Generic[BatchT]):
    """Trains the trainable parameters of a module on a loss.

    Args:
        module: whose parameters with ``requires_grad`` are trained.
        loss_of: gives a scalar, or a mapping with the scalar under "loss" and further figures for the log;
            all of them tensors.
        batches: what ``loss_of`` is called with; endless, or at least long enough.
        on_progress: called after every step.
        evaluate: called with the module in evaluation mode and without gradients.
        log_path: a JSON-lines file, appended to.
        clock: seconds, for ``max_seconds``.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_of: Callable[[BatchT], Tensor | Mapping[str, Tensor]],
        batches: Iterable[BatchT],
        config: TrainingConfig,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        log_path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.module = module
        self.config = config
        self._loss_of = loss_of
        self._batches = iter(batches)
        self._on_progress = on_progress
        self._evaluate = evaluate
        self._log_path = log_path
        self._clock = clock
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimisers = make_optimisers(module, config.optimiser)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["peak_lr"] = group["lr"]

    def run(self) -> TrainingRecord:
        """Train to the end. Raises: TrainingDivergedError; whatever the loss raises."""
        if self._log_path is None:
            return self._run(None)
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("a", encoding="utf-8") as log:
            return self._run(log)

    def _run(self, log: IO[str] | None) -> TrainingRecord:
        config = self.config
        start = self._clock()
        evaluations: list[Evaluation] = []
        smoothed = math.nan
        step, fraction, stopped_by = 0, 0.0, "steps"
        self.module.train()
        while fraction < 1.0:
            factor = learning_rate_factor(max(fraction, 1.0 / config.max_steps), config.schedule)
            figures = self._step(factor, step)
            step += 1
            smoothed = figures["loss"] if step == 1 else 0.95 * smoothed + 0.05 * figures["loss"]
            seconds = self._clock() - start
            by_time = 0.0 if config.max_seconds is None else seconds / config.max_seconds
            fraction = min(1.0, max(step / config.max_steps, by_time))
            if fraction >= 1.0 and step < config.max_steps:
                stopped_by = "seconds"
            if step % config.log_every == 0 or fraction >= 1.0:
                _write_line(log, {"step": step, "seconds": seconds, "learning_rate": factor, **figures})
            is_due = config.evaluate_every and step % config.evaluate_every == 0
            if self._evaluate is not None and (is_due or fraction >= 1.0):
                evaluations.append(Evaluation(step, self._run_evaluation(self._evaluate)))
                _write_line(log, {"step": step, "evaluation": evaluations[-1].values})
            if self._on_progress is not None:
                self._on_progress(Progress(step, fraction, smoothed, seconds))
        self.module.eval()
        return TrainingRecord(
            steps=step,
            seconds=self._clock() - start,
            stopped_by=stopped_by,
            final_loss=smoothed,
            num_parameters=sum(parameter.numel() for parameter in self._parameters),
            config=asdict(config),
            evaluations=tuple(evaluations),
        )

    def _step(self, factor: float, step: int) -> dict[str, float]:
        config = self.config
        figures: dict[str, float] = {}
        for _ in range(config.accumulate):
            result = self._loss_of(next(self._batches))
            losses = result if isinstance(result, Mapping) else {"loss": result}
            (losses["loss"] / config.accumulate).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                figures[name] = figures.get(name, 0.0) + float(value.detach()) / config.accumulate
        if not math.isfinite(figures["loss"]):
            raise TrainingDivergedError(
                f"loss: got {figures['loss']} at step {step}, expected a finite number"
            )
        if config.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self._parameters, config.clip_norm)
            figures["gradient_norm"] = float(norm)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return figures

    def _run_evaluation(self, evaluate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        self.module.eval()
        try:
            with torch.no_grad():
                return dict(evaluate())
        finally:
            self.module.train()


def _write_line(log: IO[str] | None, values: Mapping[str, Any]) -> None:
    if log is not None:
        log.write(json.dumps(values) + "\n")
        log.flush()
