"""What workers raise comes back as what it is, without starting any."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from braid_fusion.errors import (
    CheckpointMismatchError,
    TrainingConfigError,
    TrainingDivergedError,
    TrainingError,
)
from braid_fusion.training.peers import NoPeers
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.training import workers
from braid_orchestrator.training.job import TrainingJob
from braid_orchestrator.training.reaching import Way
from braid_orchestrator.training.storing import only_run, only_workers
from braid_orchestrator.training.worker_files import LeftOutReader, LeftOutWriter, stop_file
from braid_rpc.errors import BraidError, ConfigError, ConflictError, InvalidRequestError, UnavailableError


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (TrainingConfigError, InvalidRequestError),
        (CheckpointMismatchError, ConflictError),
        (TrainingDivergedError, BraidError),
    ],
)
def test_what_ends_training_leaves_a_worker_as_what_its_caller_knows(
    raised: type[TrainingError], expected: type[BraidError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised("precision: got 'fp16'")

    monkeypatch.setattr(workers, "ProcessPeers", NoPeers)
    monkeypatch.setattr(workers, "do_job", fail)
    job = TrainingJob(BraidConfig(name="b", anchor="a", shards=()), Way(), ("text",), tmp_path)
    with pytest.raises(expected, match="precision: got 'fp16'") as refused:
        workers._work({"job": job})
    assert type(refused.value) is expected
    assert workers._cause(refused.value) is refused.value


def test_the_reason_is_told_rather_than_what_came_of_it() -> None:
    class RayTrainError(Exception):
        def __init__(self, **about: object) -> None:
            super().__init__("a report of many lines")
            self.__dict__.update(about)

    gone, reason = RuntimeError("connection closed by peer"), UnavailableError("shard 'left': no answer")
    assert workers._cause(RayTrainError(worker_failures={0: gone, 1: reason})) is reason
    assert workers._cause(RayTrainError(worker_failures={0: gone})) is gone
    assert workers._cause(RayTrainError(controller_failure=gone)) is gone
    assert workers._cause(gone) is gone


def test_each_line_of_what_was_left_out_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    write, read = LeftOutWriter(tmp_path), LeftOutReader(tmp_path, told.append)
    read()
    for line in ("1 left out: ü", "two\nlines"):
        write(line)
        read()
        read()
    path = tmp_path / ".left-out.jsonl"
    path.write_text(path.read_text() + '"half a li')
    read()
    assert told == ["1 left out: ü", "two\nlines"]


def test_workers_find_what_is_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a working folder of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "verses").mkdir()
    named = ("verses", "hf:verses:test[:2]", "hf:./verses@default", "hf:someone/verses", "none.txt")
    here = str(tmp_path.resolve())
    assert workers._absolute(named) == (
        f"{here}/verses",
        f"hf:{here}/verses:test[:2]",
        f"hf:{here}/verses@default",
        "hf:someone/verses",
        "none.txt",
    )


def test_only_the_folder_of_a_data_set_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("f", "odd@place/f"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert workers._absolute(("hf:f:f:f",)) == (f"hf:{tmp_path.resolve()}/f:f:f",)
    monkeypatch.chdir(tmp_path / "odd@place")
    with pytest.raises(InvalidRequestError, match=r"got the folder .*odd@place/f, expected a path"):
        workers._absolute(("hf:f",))


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[TrainingJob]:
    """Jobs that Ray Train is given; there is none of it, and every run ends in a ConflictError."""
    jobs: list[TrainingJob] = []

    class Trainer:
        def __init__(self, work: object, train_loop_config: dict[str, TrainingJob], **_: object) -> None:
            jobs.append(train_loop_config["job"])

        def fit(self) -> None:
            raise ConflictError("no workers here")

    def take(**_: object) -> None:
        return None

    modules = {
        "ray": {"is_initialized": lambda: True, "available_resources": lambda: {"CPU": 8.0}},
        "ray.train": dict.fromkeys(("FailureConfig", "RunConfig", "ScalingConfig"), take),
        "ray.train.torch": {"TorchConfig": take, "TorchTrainer": Trainer},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    return jobs


def test_workers_find_sockets_that_are_named_from_here(
    handed: list[TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have a working folder of their own."""
    monkeypatch.chdir("/")
    named = {"a": "unix:run/a.sock", "b": "unix:///run/b.sock", "c": "unix:/run/c.sock", "d": "10.0.0.5:7001"}
    config = BraidConfig(name="b", anchor="a", shards=())
    with pytest.raises(ConflictError, match="no workers here"):
        workers.do_job_with_workers(TrainingJob(config, Way(named), ("text",), tmp_path / "run"), 2)
    assert handed[0].way == Way({**named, "a": "unix:/run/a.sock"})
    for way in (Way(), Way(in_store=True), Way(application="braid")):
        with pytest.raises(ConflictError, match="no workers here"):
            workers.do_job_with_workers(TrainingJob(config, way, ("text",), tmp_path / "run"), 2)
        assert handed[-1].way == way


def test_a_socket_whose_absolute_path_is_too_long_is_refused_before_any_worker_is_started(
    handed: list[TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a" * 100)
    deep.mkdir()
    monkeypatch.chdir(deep)
    job = TrainingJob(
        BraidConfig(name="b", anchor="a", shards=()), Way({"a": "unix:a.sock"}), (), tmp_path / "run"
    )
    with pytest.raises(InvalidRequestError, match=r"expected at most 103: .*/a\.sock"):
        workers.do_job_with_workers(job, 2)
    assert not handed and not job.folder.exists()


def test_who_starts_workers_leaves_what_others_have_told_alone(
    handed: list[TrainingJob], tmp_path: Path
) -> None:
    job = TrainingJob(BraidConfig(name="b", anchor="a", shards=()), Way(), ("text",), tmp_path)
    told = stop_file(tmp_path)
    told.touch()
    for held in (only_run, only_workers):
        with held(tmp_path), pytest.raises(ConflictError, match="got a run that is under way in it"):
            workers.do_job_with_workers(job, 2)
        assert not handed and told.exists()
    with pytest.raises(ConflictError, match="no workers here"):
        workers.do_job_with_workers(job, 2)
    assert handed and not list(tmp_path.iterdir())


def test_who_starts_workers_keeps_the_first_of_them_in(tmp_path: Path) -> None:
    with only_workers(tmp_path), only_run(tmp_path):
        assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())


def test_without_ray_train_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[workers\]'"):
        workers.do_job_with_workers(cast(Any, None), 2)
