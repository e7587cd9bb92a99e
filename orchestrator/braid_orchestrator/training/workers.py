"""One job shared by several workers, by Ray Train: each takes its part of every step's batches."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from braid_fusion.training import Evaluation, ProcessPeers, Progress, TrainingRecord
from braid_fusion.training.interrupt import stop_on_interrupt
from braid_fusion.training.progress_bar import ProgressBar
from braid_orchestrator.training.job import TrainingJob, do_job
from braid_orchestrator.training.run import Outcome
from braid_orchestrator.training.storing import storage_errors
from braid_rpc.errors import BraidError, UnavailableError

_OUTCOME_FILE, _STOP_FILE, _PROGRESS_FILE = ".outcome.json", ".stop", ".progress.json"
_NOTICE_S = 0.2  # how soon Ctrl-C is passed on, and progress passed back


def do_job_with_workers(job: TrainingJob, num_workers: int, *, progress_bar: bool | None = None) -> Outcome:
    """Start workers on the Ray cluster that this machine is part of (one of its own, if there is none), and wait.

    The run's folder must be the same for all of them. A step takes ``num_workers`` times the batches that it takes
    with one worker. Ctrl-C ends the run after the step at hand, with a checkpoint. ``progress_bar`` is shown here, of
    the first worker's steps; None: where standard error is a terminal.

    Raises: BraidError, with what a worker raised; UnavailableError if Ray can't start them.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = job.folder.resolve()
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (_OUTCOME_FILE, _STOP_FILE, _PROGRESS_FILE):
            (folder / name).unlink(missing_ok=True)
    own_cluster = not ray.is_initialized()
    if own_cluster:
        try:
            ray.init(address="auto", log_to_driver=True)
        except ConnectionError:
            ray.init(log_to_driver=True)
    try:
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "job": replace(
                    job,
                    folder=folder,
                    texts=_absolute(job.texts),
                    held_out=_absolute(job.held_out),
                    tensorboard=None if job.tensorboard is None else job.tensorboard.resolve(),
                )
            },
            scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 0.5}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name="workers", storage_path=str(folder / "ray")),
        )
        try:
            with ProgressBar(job.options.steps, shown=progress_bar) as bar:
                _wait_for(
                    trainer.fit, folder / _STOP_FILE, _ProgressReader(folder / _PROGRESS_FILE, bar.show)
                )
        except Exception as error:
            cause = _cause(error)
            kind = type(cause) if isinstance(cause, BraidError) else UnavailableError
            raise kind(f"workers: {type(cause).__name__}: {cause}") from error
    finally:
        for name in (_STOP_FILE, _PROGRESS_FILE):
            (folder / name).unlink(missing_ok=True)
        if own_cluster:
            ray.shutdown()
    return _read_outcome(folder)


def _wait_for(fit: Callable[[], object], stop_file: Path, look: Callable[[], None]) -> None:
    """Call ``fit`` and wait, calling ``look`` now and then; the first Ctrl-C makes ``stop_file``, a second one is a
    KeyboardInterrupt.

    In a thread of its own, because Ray Train's handler for SIGINT, which it sets in the main thread and leaves there,
    would end the workers in the middle of a step.
    """
    done: Future[object] = Future()

    def run() -> None:
        try:
            done.set_result(fit())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    with stop_on_interrupt(True) as wish:
        while not wait([done], timeout=_NOTICE_S).done:
            look()
            if wish.asked:
                stop_file.touch()
    look()
    done.result()


class _ProgressWriter:
    """In the first worker: leaves its progress in a file, not oftener than it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._written >= _NOTICE_S or progress.fraction >= 1.0:
            self._written = now
            building = self._path.with_suffix(".building")
            building.write_text(json.dumps(asdict(progress)), encoding="utf-8")
            building.replace(self._path)


class _ProgressReader:
    """Where the workers were started: passes on what is new in that file."""

    def __init__(self, path: Path, show: Callable[[Progress], None]) -> None:
        self._path = path
        self._show = show
        self._last: Progress | None = None

    def __call__(self) -> None:
        try:
            progress = Progress(**json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:  # no step is taken yet
            return
        if progress != self._last:
            self._last = progress
            self._show(progress)


def _work(config: dict[str, Any]) -> None:
    """In each worker's process."""
    import torch

    torch.set_num_threads(1)
    job: TrainingJob = config["job"]
    peers = ProcessPeers()
    outcome = do_job(
        job,
        peers,
        progress_bar=False,
        on_progress=_ProgressWriter(job.folder / _PROGRESS_FILE) if peers.rank == 0 else None,
        stop_wanted=(job.folder / _STOP_FILE).exists,
    )
    if peers.rank == 0:
        found = {
            "weights": None if outcome.weights is None else str(outcome.weights),
            "record": asdict(outcome.record),
            "held_out": outcome.held_out,
        }
        with storage_errors(job.folder):
            (job.folder / _OUTCOME_FILE).write_text(json.dumps(found), encoding="utf-8")


def _read_outcome(folder: Path) -> Outcome:
    path = folder / _OUTCOME_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BraidError(
            f"workers: none of them wrote {path}; the run's folder must be shared by all"
        ) from error
    path.unlink()
    record = found["record"]
    record["evaluations"] = tuple(Evaluation(**one) for one in record["evaluations"])
    return Outcome(found["weights"] and Path(found["weights"]), TrainingRecord(**record), found["held_out"])


def _absolute(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Workers have a working folder of their own."""
    return tuple(str(Path(text).resolve()) if Path(text).exists() else text for text in texts)


def _cause(error: BaseException) -> BaseException:
    """What the first worker that failed raised."""
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    while first.__cause__ is not None:
        first = first.__cause__
    return first
