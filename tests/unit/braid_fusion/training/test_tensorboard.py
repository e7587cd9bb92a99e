"""A run's figures as TensorBoard's events: all of them, each step once, also after a run was broken off."""

from __future__ import annotations

import math
import resource
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboard_events import Scalars, scalars
from training_runs import tiny_trainer

from braid_fusion.errors import TrainingConfigError
from braid_fusion.training import read_log

needs_writer = pytest.mark.skipif(
    find_spec("tensorboardX") is None,
    reason="needs tensorboardX, which is absent: pip install '.[tensorboard]'",
)


def logged(path: Path) -> Scalars:
    """What the log has of the same."""
    found: Scalars = {}
    for line in read_log(path):
        place, figures = "training", line
        if "evaluation" in line:
            place, figures = "evaluation", line["evaluation"]
        for name, value in figures.items():
            if name not in ("step", "seconds", "tokens"):
                found.setdefault(f"{place}/{name}", []).append((line["step"], pytest.approx(value, rel=1e-6)))
    return found


def train(folder: Path, **options: Any) -> None:
    resume_from = options.pop("resume_from", None)
    tiny_trainer(folder, tensorboard=folder / "events", **options).run(resume_from=resume_from)


@needs_writer
def test_all_figures_of_the_log_are_read_back(tmp_path: Path) -> None:
    train(tmp_path)
    shown = scalars(tmp_path / "events")
    assert shown == logged(tmp_path / "log.jsonl")
    assert {"training/loss", "training/learning_rate", "evaluation/loss"} <= shown.keys()
    assert [step for step, _ in shown["training/loss"]] == list(range(1, 18))
    assert not any(math.isnan(value) for points in shown.values() for _, value in points)


@needs_writer
def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    def die(progress: Any) -> None:
        if progress.step == 10:  # behind the checkpoint of step 6: four steps are done again
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_progress=die)
    assert scalars(tmp_path / "events")["training/loss"][-1][0] == 10
    train(tmp_path, resume_from=tmp_path / "checkpoints")
    assert len(list((tmp_path / "events").iterdir())) == 2
    shown = scalars(tmp_path / "events")
    assert shown == logged(tmp_path / "log.jsonl")
    assert [step for step, _ in shown["training/loss"]] == list(range(1, 18))


@needs_writer
@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard, which is absent")
def test_tensorboard_itself_shows_the_same(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def die(progress: Any) -> None:
        if progress.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_progress=die)
    train(tmp_path, resume_from=tmp_path / "checkpoints")
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    shown = {
        tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert shown == logged(tmp_path / "log.jsonl")


@needs_writer
def test_a_full_disk_ends_the_run_at_once(tmp_path: Path) -> None:
    """The library's own writer would let the run wait for ever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    steps: list[int] = []
    trainer = tiny_trainer(
        None, tensorboard=tmp_path, max_steps=200, on_progress=lambda p: steps.append(p.step)
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    shown = [step for step, _ in scalars(tmp_path)["training/loss"]]
    assert 0 < len(steps) < 200 and shown[: len(steps)] == steps


def test_without_the_library_it_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr("braid_fusion.training.tensorboard.find_spec", lambda name: None)
    with pytest.raises(TrainingConfigError, match=r"pip install '\.\[tensorboard\]'"):
        train(tmp_path)
    assert not any(tmp_path.iterdir())
