"""What a run leaves that an error ended: a checkpoint of the last whole step, from which it goes on bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import TinyModel, everything, tiny_trainer

from braid_fusion.errors import TrainingDivergedError
from braid_fusion.training import Trainer, read_log
from braid_fusion.training.checkpoint import steps_in


class ShardGoneError(Exception):
    """Somebody else's failure."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


class Failing(TinyModel):
    """Its loss fails in one of its calls, when dropout and running means have already moved."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.calls_left = call

    def loss(self, windows: Tensor) -> dict[str, Tensor]:
        figures = super().loss(windows)
        self.calls_left -= 1
        if not self.calls_left:
            raise ShardGoneError
        return figures


def checkpoints(folder: Path) -> list[int]:
    return [step for step, _ in steps_in(folder / "checkpoints")]


# A step calls the loss twice, and the evaluation after every fourth step and after the last, the 17th, once.
@pytest.mark.parametrize(
    ("call", "last_whole"),
    [(8, 3), (9, 4), (10, 4), (11, 4), (39, 17)],
    ids=["second batch", "evaluation", "first batch", "second batch, evaluated", "last evaluation"],
)
def test_a_run_goes_on_bit_for_bit_from_where_an_error_ended_it(
    tmp_path: Path, call: int, last_whole: int
) -> None:
    straight = tiny_trainer(tmp_path / "straight", checkpoint_every=0)
    record = straight.run()
    torch.manual_seed(5)
    broken = tmp_path / "broken"
    with pytest.raises(ShardGoneError):
        tiny_trainer(broken, model=Failing(call), checkpoint_every=0).run()
    assert checkpoints(broken) == [last_whole]
    torch.manual_seed(99)  # another process begins otherwise
    random.seed(99)
    resumed = tiny_trainer(broken, checkpoint_every=0)
    assert resumed.run(broken / "checkpoints") == record
    assert everything(resumed) == everything(straight)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("straight", "broken")]
    assert logs[0] == logs[1]
    # What was caught up is in the last checkpoint too.
    again = tiny_trainer(broken, checkpoint_every=0)
    assert again.run(broken / "checkpoints") == record


def test_an_evaluation_that_is_caught_up_stands_in_the_log_once(tmp_path: Path) -> None:
    """Also if the run that caught it up is killed before its next checkpoint."""
    folder = tmp_path / "broken"
    with pytest.raises(ShardGoneError):
        tiny_trainer(folder, model=Failing(9), checkpoint_every=0).run()  # in the first evaluation

    def die(progress: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(folder, checkpoint_every=0, on_progress=die).run(folder / "checkpoints")
    tiny_trainer(folder, checkpoint_every=0).run(folder / "checkpoints")
    lines = read_log(folder / "log.jsonl")
    evaluated = [line["step"] for line in lines if "evaluation" in line]
    assert evaluated[0] == 4 and len(evaluated) == len(set(evaluated))


def test_an_error_of_whoever_watches_leaves_the_step_that_is_done(tmp_path: Path) -> None:
    def fail(progress: Any) -> None:
        if progress.step == 7:
            raise ShardGoneError

    with pytest.raises(ShardGoneError):
        tiny_trainer(tmp_path, on_progress=fail, checkpoint_every=0).run()
    assert checkpoints(tmp_path) == [7]


def test_nothing_is_left_where_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(ShardGoneError):
        tiny_trainer(tmp_path, model=Failing(2), checkpoint_every=0).run()
    assert checkpoints(tmp_path) == []  # no step was done

    model = TinyModel()

    def spoil(progress: Any) -> None:
        if progress.step == 3:
            with torch.no_grad():
                model.hidden.weight.fill_(float("nan"))

    with pytest.raises(TrainingDivergedError):
        tiny_trainer(tmp_path, model=model, on_progress=spoil, checkpoint_every=0).run()
    assert checkpoints(tmp_path) == []


def test_parameters_that_are_half_updated_are_not_kept(tmp_path: Path) -> None:
    trainer: Trainer[Tensor] | None = None

    def break_update(progress: Any) -> None:
        def fail() -> None:
            raise ShardGoneError

        if progress.step == 3:
            assert trainer is not None
            trainer._optimisers[0].step = fail  # type: ignore[method-assign]

    trainer = tiny_trainer(tmp_path, on_progress=break_update, checkpoint_every=0)
    with pytest.raises(ShardGoneError):
        trainer.run()
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_that_cannot_be_written_hides_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(ShardGoneError):
        tiny_trainer(tmp_path, model=Failing(8), checkpoint_every=0, early_stopping=None).run()
    assert "no checkpoint of step 3" in caplog.text
