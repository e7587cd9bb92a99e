"""One job shared by several workers, by Ray Train: each takes its part of every step's batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from braid_fusion.training import ProcessPeers
from braid_fusion.training.interrupt import stop_on_interrupt
from braid_fusion.training.progress_bar import ProgressBar
from braid_orchestrator.training import worker_files
from braid_orchestrator.training.data import hub
from braid_orchestrator.training.job import OnLeftOut, TrainingJob, do_job
from braid_orchestrator.training.run import Outcome, check_place
from braid_orchestrator.training.storing import check_writable, only_workers, storage_errors
from braid_rpc.channels import absolute_target
from braid_rpc.errors import BraidError, CapacityError, ConfigError, UnavailableError
from braid_services.fusion.translation import braid_errors

WORKER_CPUS = 0.5
# For CPUs that somebody has just let go of: the cluster takes a moment to know of it.
_ROOM_PATIENCE_S = 5.0
# For the first worker, who evaluates alone. Ray ends the others if it dies.
_PATIENCE_S = 7 * 24 * 3600


def do_job_with_workers(
    job: TrainingJob,
    num_workers: int,
    *,
    on_left_out: OnLeftOut = lambda line: None,
    progress_bar: bool | None = None,
) -> Outcome:
    """Start workers on the Ray cluster that this machine is part of (one of its own, if there is none), and wait.

    The run's folder must be the same for all of them. A step takes ``num_workers`` times the batches that it takes
    with one worker. Ctrl-C ends the run after the step at hand, with a checkpoint. ``progress_bar`` is shown here, of
    the first worker's steps; None: where standard error is a terminal. ``on_left_out`` is told here what of the texts
    was left out.

    Raises: BraidError, with what a worker raised; ConfigError without Ray Train; CapacityError if too few CPUs are
        free for them; UnavailableError if Ray can't start them; ConflictError where a run is under way in the run's
        folder; StorageError if it cannot be written.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise ConfigError(
            f"workers: no Ray Train ({error}), expected the extra `workers`: pip install '.[workers]'"
        ) from error

    job = _from_anywhere(job)
    folder = job.folder
    with braid_errors():
        job.options.trainer_config(has_held_out=False)  # for what it checks
    with only_workers(folder):
        with storage_errors(folder), braid_errors():
            check_place(folder, version=job.version, resume=job.resume)
            check_writable(folder, None)  # events are the first worker's to write, wherever it runs
            folder.mkdir(parents=True, exist_ok=True)
            worker_files.forget(folder)
        own_cluster = not ray.is_initialized()
        if own_cluster:
            try:
                ray.init(address="auto", log_to_driver=True)
            except ConnectionError:
                ray.init(log_to_driver=True)
        try:
            _check_room(num_workers)
            trainer = TorchTrainer(
                _work,
                train_loop_config={"job": job},
                scaling_config=ScalingConfig(
                    num_workers=num_workers, resources_per_worker={"CPU": WORKER_CPUS}
                ),
                torch_config=TorchConfig(backend="gloo", timeout_s=_PATIENCE_S),
                run_config=RunConfig(
                    name="workers",
                    storage_path=str(folder / "ray"),
                    # Else Ray Train tries to start them for ever, where CPUs were taken since.
                    failure_config=FailureConfig(controller_failure_limit=0),
                ),
            )
            try:
                with ProgressBar(job.options.steps, shown=progress_bar) as bar:
                    readers = (
                        worker_files.LeftOutReader(folder, on_left_out),
                        worker_files.ProgressReader(folder, bar.show),
                    )
                    _wait_for(trainer.fit, worker_files.stop_file(folder), readers)
            except Exception as error:
                cause = _cause(error)
                kind = type(cause) if isinstance(cause, BraidError) else UnavailableError
                raise kind(f"workers: {type(cause).__name__}: {cause}") from error
            return worker_files.read_outcome(folder)
        finally:
            with suppress(OSError):
                worker_files.forget(folder)
            if own_cluster:
                ray.shutdown()


def _check_room(num_workers: int) -> None:
    """Raises: CapacityError if the cluster has too few free CPUs."""
    import ray

    wanted = num_workers * WORKER_CPUS
    give_up_s = time.monotonic() + _ROOM_PATIENCE_S
    while (free := ray.available_resources().get("CPU", 0.0)) < wanted:
        total = ray.cluster_resources().get("CPU", 0.0)
        if total < wanted or time.monotonic() > give_up_s:
            raise CapacityError(
                f"workers: got {num_workers} of {WORKER_CPUS} CPUs each, {wanted:g} in all, expected at most "
                f"{free:g}: so many of the Ray cluster's {total:g} are free"
            )
        time.sleep(worker_files.NOTICE_S)


def _wait_for(fit: Callable[[], object], stop_file: Path, readers: tuple[Callable[[], None], ...]) -> None:
    """Call ``fit`` and wait, calling ``readers`` now and then; the first Ctrl-C makes ``stop_file``, a second one is
    a KeyboardInterrupt.

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
        while not wait([done], timeout=worker_files.NOTICE_S).done:
            for read in readers:
                read()
            if wish.asked:
                stop_file.touch()
    for read in readers:
        read()
    done.result()


def _work(config: dict[str, Any]) -> None:
    """In each worker's process. Raises: BraidError, which who started it knows."""
    import torch

    torch.set_num_threads(1)
    job: TrainingJob = config["job"]
    peers = ProcessPeers()
    is_first = peers.rank == 0
    with braid_errors():
        outcome = do_job(
            job,
            peers,
            progress_bar=False,
            on_left_out=worker_files.LeftOutWriter(job.folder) if is_first else lambda line: None,
            on_progress=worker_files.ProgressWriter(job.folder) if is_first else None,
            stop_wanted=worker_files.stop_file(job.folder).exists,
        )
    if is_first:
        worker_files.write_outcome(job.folder, outcome)


def _from_anywhere(job: TrainingJob) -> TrainingJob:
    """The same job, with absolute paths: workers have a working folder of their own.

    Raises: InvalidRequestError for a folder or a socket that can't be named so.
    """
    way, targets = job.way, job.way.targets
    if targets is not None:
        way = replace(way, targets={name: absolute_target(target) for name, target in targets.items()})
    return replace(
        job,
        way=way,
        folder=job.folder.resolve(),
        texts=_absolute(job.texts),
        held_out=_absolute(job.held_out),
        tensorboard=None if job.tensorboard is None else job.tensorboard.resolve(),
    )


def _absolute(texts: tuple[str, ...]) -> tuple[str, ...]:
    def absolute(text: str) -> str:
        if text.startswith(hub.PREFIX):
            return hub.with_absolute_folder(text)
        return str(Path(text).resolve()) if Path(text).exists() else text

    return tuple(absolute(text) for text in texts)


def _cause(error: BaseException) -> BaseException:
    """What ended the run: of what workers raised a BraidError, rather than what came of it at the others."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    found = [_origin(failure) for failure in failures.values()]
    return next((one for one in found if isinstance(one, BraidError)), found[0])


def _origin(error: BaseException) -> BaseException:
    while not isinstance(error, BraidError) and error.__cause__ is not None:
        error = error.__cause__
    return error
