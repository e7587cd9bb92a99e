"""What workers raise comes back as what it is, without starting any."""

from __future__ import annotations

import sys
from pathlib import Path
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
from braid_orchestrator.training.worker_files import LeftOutReader, LeftOutWriter
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


def test_without_ray_train_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[workers\]'"):
        workers.do_job_with_workers(cast(Any, None), 2)
