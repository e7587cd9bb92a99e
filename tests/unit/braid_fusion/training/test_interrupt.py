"""Ctrl-C: with checkpoints a clean end after the step at hand, without them as ever."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import tiny_trainer

from braid_fusion.training.checkpoint import steps_in


def interrupt_at(step: int) -> Any:
    def note(progress: Any) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return note


def test_an_interrupted_run_ends_with_a_checkpoint_and_can_go_on(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    torch.manual_seed(5)
    straight = tiny_trainer()
    record = straight.run()
    torch.manual_seed(5)
    interrupted = tiny_trainer(tmp_path, on_progress=interrupt_at(10)).run()
    assert (interrupted.stopped_by, interrupted.steps) == ("interrupt", 10)
    assert steps_in(tmp_path / "checkpoints")[-1][0] == 10
    assert signal.getsignal(signal.SIGINT) is before
    resumed = tiny_trainer(tmp_path)
    assert resumed.run(tmp_path / "checkpoints") == record
    for name, tensor in straight.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], tensor), name


def test_an_interrupt_leaves_the_current_weights_not_the_best(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, on_progress=interrupt_at(10))
    trainer.run()
    assert trainer._state.best is not None
    assert not torch.equal(trainer.module.hidden.weight, trainer._state.best["hidden.weight"])


def test_without_checkpoints_it_is_a_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(on_progress=interrupt_at(3)).run()


def test_a_second_one_does_not_wait(tmp_path: Path) -> None:
    def twice(progress: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path, on_progress=twice).run()


def test_training_works_in_another_thread(tmp_path: Path) -> None:
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.append(tiny_trainer(tmp_path).run().steps))
    thread.start()
    thread.join(60)
    assert steps == [17]
