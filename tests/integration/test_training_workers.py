"""Workers of Ray Train: two have the loss curve of one with twice the accumulation; Ctrl-C, going on, progress, and
what there is no room for."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest
from models import save_tiny_model
from programs import eventually

from braid_fusion.training import read_log
from braid_fusion.weights import read_card
from braid_orchestrator.config.schema import parse_braid_config
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.training import workers
from braid_orchestrator.training.job import TrainingJob, do_job
from braid_orchestrator.training.reaching import Way
from braid_orchestrator.training.run import RunOptions
from braid_orchestrator.training.workers import do_job_with_workers
from braid_rpc.errors import CapacityError, ContextLengthError, UnavailableError
from braid_services.shard.main import serve_shard

# Gradients of two workers are added up in another order than those of one.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BraidConfig:
    folder = tmp_path_factory.mktemp("models")
    return parse_braid_config(
        {
            "name": "tiny",
            "anchor": "left",
            "shards": [
                {"name": "left", "model": str(save_tiny_model(folder / "left", 1))},
                {"name": "right", "model": str(save_tiny_model(folder / "right", 2, width=48, num_layers=4))},
            ],
            "points": [{"at": 0.5, "strategy": "mlp"}],
            "readout": "gate",
        },
        {},
    )


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder / "log.jsonl") if "loss" in line]


def interrupt_when(folder: Path, num_steps: int) -> Thread:
    """Ctrl-C as soon as so many steps are logged."""

    def wait_and_interrupt() -> None:
        log = folder / "log.jsonl"
        eventually(lambda: log.exists() and len(losses(folder)) >= num_steps, 120.0, "steps are taken")
        os.kill(os.getpid(), signal.SIGINT)

    thread = Thread(target=wait_and_interrupt)
    thread.start()
    return thread


# Ray Train uses what Ray Data deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_interrupted_run_ends_with_a_checkpoint_and_goes_on_with_another_number_of_workers(
    config: BraidConfig, ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    text = tmp_path / "text.txt"
    text.write_text("the thing in the other inner theatre is thin there " * 20)
    options = RunOptions(steps=40, window=16, batch_size=2, accumulate=2, evaluate_every=100)
    job = TrainingJob(config, Way(), (str(text),), tmp_path / "run", held_out_share=0.2, options=options)
    interrupting = interrupt_when(job.folder, 3)
    stopped = do_job_with_workers(replace(job, options=replace(options, accumulate=1)), 2)
    interrupting.join()
    assert stopped.weights is None and stopped.record.stopped_by == "interrupt"
    assert 3 <= stopped.record.steps < 40
    assert signal.getsignal(signal.SIGINT) is before
    resumed = do_job_with_workers(replace(job, resume=True), 1, progress_bar=True)
    assert resumed.record.steps == 40
    assert "40/40" in capsys.readouterr().err
    do_job(replace(job, folder=tmp_path / "straight"), progress_bar=False)
    assert losses(job.folder) == pytest.approx(losses(tmp_path / "straight"), abs=TOLERANCE)


# Ray Train uses what Ray Data deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_workers_are_one_with_twice_the_accumulation(
    config: BraidConfig, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "text.txt").write_text("the thing in the other inner theatre is thin there " * 20)
    (texts / "other.txt").write_bytes(b"\0")
    left_out: list[str] = []
    options = RunOptions(steps=5, window=16, batch_size=2, evaluate_every=2)
    with ExitStack() as stack:
        # Named from here, where paths are short; workers have a working folder of their own.
        monkeypatch.chdir(stack.enter_context(TemporaryDirectory()))
        targets = {shard.name: f"unix:{shard.name}.sock" for shard in config.shards}
        for shard in config.shards:
            stack.enter_context(serve_shard(shard, [targets[shard.name]]))
        job = TrainingJob(
            config, Way(targets), (str(texts),), tmp_path / "two", held_out_share=0.2, options=options
        )
        two = do_job_with_workers(job, 2, on_left_out=left_out.append)
        assert len(left_out) == 1 and left_out[0].startswith("1 left out: files that are not text in UTF-8")
        alone = replace(job, folder=tmp_path / "one", options=replace(options, accumulate=2))
        one = do_job(alone, progress_bar=False)
        assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=TOLERANCE)
        assert len(losses(tmp_path / "one")) == 5
        assert two.record.evaluations and two.held_out == pytest.approx(one.held_out, abs=TOLERANCE)
        assert read_card(two.weights).plan == read_card(one.weights).plan
        # What one worker can't do ends the run, with its reason.
        with pytest.raises(ContextLengthError, match=r"workers: ContextLengthError: window: got 999"):
            do_job_with_workers(
                replace(job, folder=tmp_path / "bad", options=replace(options, window=999)), 2
            )


# Ray Train uses what Ray Data deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_without_room_are_refused_and_never_waited_for(
    config: BraidConfig, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    job = TrainingJob(config, Way(), ("never read",), tmp_path / "run")
    message = r"workers: got 5 of 0\.5 CPUs each, 2\.5 in all, expected at most 2: so many of .* cluster's 2 are free"
    with pytest.raises(CapacityError, match=message):
        do_job_with_workers(job, 5)

    @ray.remote(num_cpus=1.5)
    class Other:
        def is_there(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.is_there.remote())
    monkeypatch.setattr(workers, "_ROOM_PATIENCE_S", 1.0)
    with pytest.raises(
        CapacityError, match=r"got 2 .* expected at most 0\.5: so many of .* cluster's 2 are free"
    ):
        do_job_with_workers(job, 2)
    # Where they are taken between this look and the start.
    monkeypatch.setattr(workers, "_check_room", lambda num_workers: None)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    with pytest.raises(UnavailableError, match=r"workers: .*timed out after 2\.0 seconds"):
        do_job_with_workers(job, 2)
