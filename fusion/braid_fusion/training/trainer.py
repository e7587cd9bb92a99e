"""The training loop: schedule, evaluation, stopping, log, checkpoints. Knows no model: the loss is a function.

A run ends after a number of steps or a number of seconds, whichever is first, and the learning rate follows
whichever is further on, so that a slow machine ends in time with a finished schedule.

A run that an error ends leaves a checkpoint too, as of the last whole step.

A run that is resumed from a checkpoint gives the same numbers, bit for bit, as one that never stopped, as long as
steps alone decide (``max_seconds`` None) and the machine computes the same. What is random in a batch follows from
its number; random generators are in checkpoints for what draws from them between batches, such as an evaluation.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from braid_fusion.differences import differences
from braid_fusion.errors import TrainingConfigError, TrainingDivergedError
from braid_fusion.training.checkpoint import CheckpointFolder, last_checkpoint, read_checkpoint
from braid_fusion.training.config import TrainerConfig, plain
from braid_fusion.training.early_stopping import StopWatch
from braid_fusion.training.interrupt import StopWish, stop_on_interrupt
from braid_fusion.training.optimisers import make_optimisers
from braid_fusion.training.peers import NoPeers, Peers
from braid_fusion.training.precision import Precision
from braid_fusion.training.progress_bar import ProgressBar
from braid_fusion.training.record import Progress, TrainingRecord
from braid_fusion.training.run_log import RunLog
from braid_fusion.training.schedule import learning_rate_factor
from braid_fusion.training.state import Mark, TrainingState
from braid_fusion.training.step import Losses, OptimiserStep
from braid_fusion.training.tensorboard import TensorBoardLog, check_tensorboard

_log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")


def never() -> bool:
    """Nobody wants it."""
    return False


class Trainer(Generic[BatchT]):
    """Trains the trainable parameters of a module on a loss.

    Args:
        module: whose parameters with ``requires_grad`` are trained.
        loss_of: gives a scalar, the mean over the batch's tokens, or a mapping with the scalar under "loss", their
            number under "tokens" (see `step.py` for what it is used for), and further figures for the log; all
            of them tensors.
        batches: what ``loss_of`` is called with; endless, or at least long enough. For checkpoints a
            `ResumableSource`.
        on_progress: called after every step.
        evaluate: called with the module in evaluation mode, without gradients, in the run's precision.
        log_path: a JSON-lines file, begun anew, or gone on with when a run is resumed.
        tensorboard_folder: the same figures as events for TensorBoard.
        checkpoint_folder: where checkpoints go. With one, Ctrl-C ends the run after the step at hand, with a
            checkpoint; without, it is a KeyboardInterrupt. An error leaves one of the last whole step.
        settings: what else decides the outcome, such as weights within the loss; plain values. A checkpoint
            with other settings is refused.
        progress_bar: None: where standard error is a terminal.
        clock: seconds, for ``max_seconds``.
        peers: other workers with the same module, whose ``batches`` are their parts of the same source. The first
            one evaluates, logs and writes checkpoints; all resume from these, and are compared before the first
            step. As many batches per step can be gone on with by another number of workers.
        stop_wanted: asked before every step; True ends the run as Ctrl-C does. The first worker's counts.

    Raises: TrainingConfigError, also for a ``tensorboard_folder`` without the library; TrainingDataError for
        checkpoints of a source that can't be resumed.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_of: Callable[[BatchT], Losses],
        batches: Iterable[BatchT],
        config: TrainerConfig,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        log_path: Path | None = None,
        tensorboard_folder: Path | None = None,
        checkpoint_folder: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        progress_bar: bool | None = False,
        clock: Callable[[], float] = time.monotonic,
        peers: Peers | None = None,
        stop_wanted: Callable[[], bool] = never,
    ) -> None:
        self._peers = peers or NoPeers()
        self._writes = is_first = self._peers.rank == 0
        self.module = module
        self.config = config
        self._batches = batches
        self._on_progress = on_progress
        self._evaluate = evaluate
        self._log_path = log_path if is_first else None
        self._tensorboard_folder = tensorboard_folder if is_first else None
        if self._tensorboard_folder is not None:
            check_tensorboard()
        self._progress_bar = progress_bar if is_first else False
        self._clock = clock
        self._stop_wanted = stop_wanted
        self._optimisers = make_optimisers(module, config.optimiser)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["peak_lr"] = group["lr"]
        parameters = [p for p in module.parameters() if p.requires_grad]
        self._num_parameters = sum(parameter.numel() for parameter in parameters)
        self._precision = Precision(config.precision, parameters)
        self._step = OptimiserStep(
            loss_of,
            parameters,
            self._optimisers,
            self._precision,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
            seed=config.seed,
            peers=self._peers,
        )
        watch = None if config.early_stopping is None else StopWatch(config.early_stopping)
        decisive = {**config.decisive(self._peers.count), **plain(settings or {})}
        self._state = TrainingState(module, self._optimisers, self._precision, batches, decisive, watch)
        self._log = RunLog(None)
        self._tensorboard = TensorBoardLog(None)
        self._checkpoints: CheckpointFolder | None = None
        self._saved_step = 0
        if checkpoint_folder is not None:
            self._state.require_resumable()
            self._checkpoints = CheckpointFolder(checkpoint_folder, config.keep_checkpoints)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The log's lines of the last run; see `RunLog`."""
        return self._log.lines

    def run(self, resume_from: Path | None = None) -> TrainingRecord:
        """Train to the end.

        Args:
            resume_from: a checkpoint, or a folder of which the last is taken. In the folder of this run, what is of
                later steps is removed, and the log is cut, for these steps are done anew; checkpoints of another run
                are refused there.

        Raises: TrainingError of each kind, whatever the loss raises; OSError from writing.
        """
        checkpoint = None if resume_from is None else last_checkpoint(resume_from)
        is_own = (
            checkpoint is not None and self._checkpoints is not None and self._checkpoints.holds(checkpoint)
        )
        if self._checkpoints is not None and not is_own:
            self._checkpoints.refuse_another_run()
        if checkpoint is not None:
            self._state.restore(read_checkpoint(checkpoint))
            if is_own:
                self._saved_step = self._state.position.step
        self._begin_as_one()
        if checkpoint is not None and self._checkpoints is not None and self._writes:
            # Before the log is cut: never ahead of it.
            self._checkpoints.rewind(self._state.position.step, self._state.best)
        resume_step = None if resume_from is None else self._state.position.step
        self._log = RunLog(self._log_path, resume_step)
        self._tensorboard = TensorBoardLog(self._tensorboard_folder, resume_step)
        with ExitStack() as stack:
            stack.enter_context(self._log)
            stack.enter_context(self._tensorboard)
            bar = stack.enter_context(ProgressBar(self.config.max_steps, shown=self._progress_bar))
            wish = stack.enter_context(stop_on_interrupt(self._checkpoints is not None))
            stack.callback(self.module.eval)
            self._loop(bar, wish)
        stopping = self.config.early_stopping
        if self._state.position.stopped_by is not None and stopping is not None and stopping.put_back:
            self._state.put_best_back()
        return self._record()

    def _begin_as_one(self) -> None:
        """All workers begin with the first one's parameters. Raises: TrainingConfigError, at all of them, if one's
        run is not the first one's."""
        if self._peers.count == 1:
            return
        first, *others = self._peers.from_all(self._state.description())
        for rank, other in enumerate(others, start=1):
            if found := differences(first, other, f"worker {rank}", there="worker 0 has"):
                raise TrainingConfigError(f"workers: got different runs, expected one: {'; '.join(found)}")
        self._state.put_trained(self._peers.from_first(self._state.copy_trained()))

    def _loop(self, bar: ProgressBar, wish: StopWish) -> None:
        position = self._state.position
        start = self._clock() - position.seconds
        batches = iter(self._batches)
        self.module.train()
        if position.step and self._evaluate_if_due():  # where the run was ended by its failing
            self._check_end()
            self._save()  # else it stood in the log twice if this run was killed soon
        while position.stopped_by is None and not self._peers.from_first(wish.asked or self._stop_wanted()):
            # The first step isn't at the very beginning, where a warm-up has nothing, and an only one not at the end.
            fraction = max(position.fraction, min(0.5, 1.0 / self.config.max_steps))
            factor = learning_rate_factor(fraction, self.config.schedule)
            self._set_rates(factor)
            with self._kept_at_an_error(self._mark()):
                figures = self._step.take(batches, position.step)
            position.step += 1
            self._advance(figures["loss"], self._peers.from_first(self._clock() - start))
            self._write_log(factor, figures)
            self._evaluate_if_due()
            self._check_end()
            progress = Progress(position.step, position.fraction, position.loss, position.seconds)
            bar.show(progress)
            if self._on_progress is not None:
                with self._kept_at_an_error(None):
                    self._on_progress(progress)
            if self.config.checkpoint_every and position.step % self.config.checkpoint_every == 0:
                self._save()
        self._save()

    def _set_rates(self, factor: float) -> None:
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor

    def _advance(self, loss: float, seconds: float) -> None:
        config, position = self.config, self._state.position
        position.loss = loss if position.step == 1 else 0.95 * position.loss + 0.05 * loss
        position.seconds = seconds
        by_time = 0.0 if config.max_seconds is None else seconds / config.max_seconds
        position.fraction = min(1.0, max(position.step / config.max_steps, by_time))
        if position.fraction >= 1.0:
            position.stopped_by = "steps" if position.step >= config.max_steps else "seconds"

    def _write_log(self, factor: float, figures: Mapping[str, float]) -> None:
        position = self._state.position
        if position.step % self.config.log_every == 0 or position.stopped_by is not None:
            self._note(
                {
                    "step": position.step,
                    "seconds": position.seconds,
                    "learning_rate": self.config.optimiser.learning_rate * factor,
                    "smoothed_loss": position.loss,
                    **figures,
                }
            )

    def _note(self, line: Mapping[str, Any]) -> None:
        self._log.write(line)
        self._tensorboard.write(line)

    def _evaluate_if_due(self) -> bool:
        """Whether it was."""
        position, every = self._state.position, self.config.evaluate_every
        is_due = position.stopped_by is not None or (every and position.step % every == 0)
        is_done = bool(position.evaluations) and position.evaluations[-1].step == position.step
        if self._evaluate is None or not is_due or is_done:
            return False
        with self._kept_at_an_error(self._mark()):
            values = self._peers.from_first(self._values() if self._peers.rank == 0 else None)
        self._saved_step = 0  # what is on disk of this step, if anything, is of before
        is_best = self._state.note_evaluation(position.step, values)
        self._note({"step": position.step, "evaluation": values})
        if is_best and self._checkpoints is not None and self._writes and self._state.best is not None:
            self._checkpoints.save_best(self._state.best)
        if self._state.watch is not None and self._state.watch.is_over and position.stopped_by is None:
            position.stopped_by = "early_stopping"
        return True

    def _check_end(self) -> None:
        """Raises: TrainingDivergedError if the run has ended, and its last update, behind which there is no step that
        would tell, broke the weights that it ends with."""
        position, stopping = self._state.position, self.config.early_stopping
        if position.stopped_by is None or (stopping and stopping.put_back and self._state.best is not None):
            return
        name = "loss" if stopping is None else stopping.figure
        value = position.evaluations[-1].values.get(name) if position.evaluations else None
        if value is None:
            # An error in here leaves no checkpoint: the weights are not known to be good.
            with self._evaluating():
                value = self._peers.from_first(self._step.last_loss() if self._peers.rank == 0 else None)
        if value is not None and not math.isfinite(value):
            raise TrainingDivergedError(
                f"{name}: got {value} after the last step, {position.step - 1}, expected a finite number"
            )

    def _values(self) -> dict[str, float]:
        if self._evaluate is None:
            return {}
        with self._evaluating(), torch.no_grad(), self._precision.autocast():
            return {name: float(value) for name, value in self._evaluate().items()}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.module.eval()
        try:
            yield
        finally:
            self.module.train()

    def _save(self, mark: Mark | None = None) -> None:
        step = self._state.position.step
        if self._checkpoints is not None and self._writes and step != self._saved_step:
            self._log.sync()  # a checkpoint is never ahead of the log
            self._tensorboard.sync()
            self._checkpoints.save(step, self._state.content(mark))
            self._saved_step = step

    def _mark(self) -> Mark | None:
        return self._state.mark() if self._checkpoints is not None and self._writes else None

    @contextmanager
    def _kept_at_an_error(self, mark: Mark | None) -> Iterator[None]:
        """If what is done within fails, leave a checkpoint as of ``mark`` (None: as things are then). Not of a run
        that diverged, which would do so again, nor where parameters were being changed."""
        try:
            yield
        except TrainingDivergedError:
            raise
        except Exception:
            if not self._step.is_updating:
                try:
                    self._save(mark)
                except OSError as error:  # the run's own error says more
                    _log.warning("no checkpoint of step %d: %s", self._state.position.step, error)
            raise

    def _record(self) -> TrainingRecord:
        position, watch = self._state.position, self._state.watch
        return TrainingRecord(
            steps=position.step,
            seconds=position.seconds,
            stopped_by=position.stopped_by or "interrupt",
            final_loss=position.loss,
            num_parameters=self._num_parameters,
            config=asdict(self.config),
            evaluations=tuple(position.evaluations),
            best_step=None if watch is None else watch.best_step,
            best_value=None if watch is None else watch.best_value,
        )
