"""A run that is resumed gives the same numbers, bit for bit, as one that never stopped."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_runs
from safetensors.torch import load_file
from training_runs import TinyModel, everything, tiny_trainer

from braid_fusion.errors import CheckpointMismatchError, NoCheckpointError, TrainingDataError
from braid_fusion.training import EarlyStopping, OptimiserConfig, Trainer
from braid_fusion.training.checkpoint import BEST_FILE, read_checkpoint, steps_in


class KilledError(BaseException):
    """The process ends here, with nothing done any more. What `Exception`s leave is in `test_errors`."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def steps(folder: Path) -> list[int]:
    return [step for step, _ in steps_in(folder)]


def run_until(folder: Path, step: int, resume_from: Path | None = None, **options: Any) -> None:
    """Train, and die after ``step`` steps, before its checkpoint: only what is in the folder stays."""

    def die(progress: Any) -> None:
        if progress.step == step:
            raise KilledError

    with pytest.raises(KilledError):
        tiny_trainer(folder, on_progress=die, **options).run(resume_from)


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
@pytest.mark.parametrize(("every", "killed_after"), [(6, 7), (6, 12), (5, 17), (1, 2), (3, 14)])
def test_a_resumed_run_equals_one_that_never_stopped(
    tmp_path: Path, muon: bool, every: int, killed_after: int
) -> None:
    straight = tiny_trainer(tmp_path / "straight", muon=muon, checkpoint_every=every)
    record = straight.run()
    torch.manual_seed(5)
    folder = tmp_path / "broken"
    run_until(folder, killed_after, muon=muon, checkpoint_every=every)
    torch.manual_seed(99)  # another process begins otherwise
    random.seed(99)
    resumed = tiny_trainer(folder, muon=muon, checkpoint_every=every)
    resumed_record = resumed.run(folder / "checkpoints")

    assert everything(resumed) == everything(straight)
    assert resumed_record == record
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("straight", "broken")]
    assert logs[0] == logs[1]
    steps = [line["step"] for line in map(json.loads, logs[1].splitlines()) if "loss" in line]
    assert steps == list(range(1, 18))


def test_the_best_weights_of_before_the_break_come_back(tmp_path: Path) -> None:
    worst = EarlyStopping(
        patience=None, higher_is_better=True
    )  # the first evaluation's, while the loss falls
    straight = tiny_trainer(tmp_path / "straight", early_stopping=worst)
    assert straight.run().best_step == 4
    torch.manual_seed(5)
    run_until(tmp_path / "broken", 9, early_stopping=worst)
    resumed = tiny_trainer(tmp_path / "broken", early_stopping=worst)
    resumed.run(tmp_path / "broken" / "checkpoints")
    assert everything(resumed) == everything(straight)


def test_going_on_from_an_earlier_checkpoint_forgets_a_later_best(tmp_path: Path) -> None:
    """What is on disk is of the run that the log tells of."""
    latest = EarlyStopping(patience=None)  # the last evaluation's, while the loss falls
    checkpoints = tmp_path / "checkpoints"
    tiny_trainer(tmp_path, early_stopping=latest, checkpoint_every=6, keep_checkpoints=9).run()
    later = load_file(checkpoints / BEST_FILE)
    torch.manual_seed(5)
    run_until(tmp_path, 7, checkpoints / "step-00000006.ckpt", early_stopping=latest)
    earlier = load_file(checkpoints / BEST_FILE)
    best = read_checkpoint(checkpoints / "step-00000006.ckpt")["best"]
    assert all(torch.equal(earlier[name], best[name]) for name in best)
    assert not all(torch.equal(earlier[name], later[name]) for name in best)


def test_a_run_that_goes_on_in_another_folder_has_its_best_there(tmp_path: Path) -> None:
    first = EarlyStopping(patience=None, higher_is_better=True)  # the loss falls, so none is better later
    run_until(tmp_path / "one", 9, early_stopping=first)
    best = load_file(tmp_path / "one" / "checkpoints" / BEST_FILE)
    tiny_trainer(tmp_path / "other", early_stopping=first).run(tmp_path / "one" / "checkpoints")
    there = load_file(tmp_path / "other" / "checkpoints" / BEST_FILE)
    assert all(torch.equal(there[name], best[name]) for name in best)


def test_checkpoints_of_another_run_are_left_alone(tmp_path: Path) -> None:
    for name in ("one", "other"):
        tiny_trainer(tmp_path / name, checkpoint_every=6).run()
    before = steps(tmp_path / "other" / "checkpoints")
    with pytest.raises(
        CheckpointMismatchError, match="expected none for a run that doesn't go on from one of them"
    ):
        tiny_trainer(tmp_path / "other").run(tmp_path / "one" / "checkpoints" / "step-00000006.ckpt")
    assert steps(tmp_path / "other" / "checkpoints") == before


def test_dropout_and_epochs_really_take_part(tmp_path: Path) -> None:
    """What the test above relies on: other random numbers, or another order, give other parameters."""
    first = tiny_trainer()
    first.run()
    other_dropout = tiny_trainer(seed=6)
    other_dropout.run()
    other_order = tiny_trainer(order_seed=4)
    other_order.run()
    weights = [trainer.module.hidden.weight for trainer in (first, other_dropout, other_order)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    epoch = first._batches._order
    assert epoch._numbers.numel() < 17 * 2 * 3  # more than one epoch
    assert 0 < epoch._taken < epoch._numbers.numel()


PROGRAM = """
import sys
from pathlib import Path
import torch
from training_runs import tiny_trainer
torch.set_num_threads(1)
torch.manual_seed(5)
folder, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
def die(progress):
    if progress.step == 9 and not resume:
        import os
        os._exit(9)
trainer = tiny_trainer(folder, on_progress=die)
trainer.run(folder / "checkpoints" if resume else None)
torch.save(dict(trainer.module.state_dict()), folder / "weights.pt")
"""


def test_a_process_that_was_killed_is_taken_up_by_another(tmp_path: Path) -> None:
    straight = tiny_trainer()
    straight.run()
    paths = [str(Path(training_runs.__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    codes = [
        subprocess.run([*command, mode], env=environment, timeout=120).returncode
        for mode in ("begin", "resume")
    ]
    assert codes == [9, 0]
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, tensor in straight.module.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_all_global_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw(into: list[tuple[float, float, float]]) -> Any:
        return lambda _: into.append((random.random(), float(np.random.rand()), float(torch.rand(()))))

    straight: list[tuple[float, float, float]] = []
    random.seed(1)
    np.random.seed(1)
    tiny_trainer(tmp_path, on_progress=draw(straight)).run()
    for seed in (2, 3):
        resumed: list[tuple[float, float, float]] = []
        random.seed(seed)
        np.random.seed(seed)
        trainer = tiny_trainer(tmp_path, on_progress=draw(resumed))
        trainer.run(tmp_path / "checkpoints" / "step-00000012.ckpt")
        assert resumed == straight[12:]


def test_one_that_goes_on_from_earlier_leaves_no_later_checkpoint_of_before(tmp_path: Path) -> None:
    """Else a later one, of what is not in the log any more, would be kept, and those that are written now pruned."""
    folder = tmp_path / "checkpoints"
    straight = tiny_trainer(tmp_path, checkpoint_every=4, keep_checkpoints=9)
    straight.run()
    assert steps(folder) == [4, 8, 12, 16, 17]
    (folder / "notes.txt").write_text("mine")
    run_until(tmp_path, 9, resume_from=folder / "step-00000004.ckpt", checkpoint_every=3, keep_checkpoints=2)
    assert steps(folder) == [4, 6]
    again = tiny_trainer(tmp_path, checkpoint_every=4, keep_checkpoints=2)
    again.run(folder)
    assert everything(again) == everything(straight)
    assert steps(folder) == [16, 17] and (folder / "notes.txt").exists()


def test_a_finished_run_that_is_resumed_does_nothing_and_says_the_same(tmp_path: Path) -> None:
    first = tiny_trainer(tmp_path)
    record = first.run()
    again = tiny_trainer(tmp_path)
    assert again.run(tmp_path / "checkpoints") == record
    assert again.history == first.history
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name


def test_a_run_may_go_on_with_other_cadences(tmp_path: Path) -> None:
    run_until(tmp_path, 8)
    trainer = tiny_trainer(tmp_path, log_every=5, checkpoint_every=0, keep_checkpoints=1)
    assert trainer.run(tmp_path / "checkpoints").steps == 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulate": 3}, "batches_per_step: the checkpoint has 2, this run has 3"),
        ({"max_steps": 18}, "max_steps: the checkpoint has 17, this run has 18"),
        (
            {"optimiser": OptimiserConfig(learning_rate=0.5)},
            "optimiser.learning_rate: the checkpoint has 0.02, this run has 0.5",
        ),
        (
            {"early_stopping": EarlyStopping(patience=2)},
            "early_stopping.patience: the checkpoint has None, this run has 2",
        ),
        (
            {"settings": {"weights": {"order": 0.1}}},
            "weights.order: the checkpoint has 'nothing', this run has 0.1",
        ),
        ({"seed": 8}, "another configuration: seed: the checkpoint has 0, this run has 8"),
        ({"order_seed": 8}, "another source of data: seed: the checkpoint has 3, this run has 8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_both_sides(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run_until(tmp_path, 7)
    trainer = tiny_trainer(tmp_path, **change)
    before = everything(trainer)
    with pytest.raises(CheckpointMismatchError) as refused:
        trainer.run(tmp_path / "checkpoints")
    assert message in str(refused.value)
    assert everything(trainer) == before


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    run_until(tmp_path, 7)
    narrower = TinyModel()
    narrower.lm_head = torch.nn.Linear(8, 5)
    with pytest.raises(
        CheckpointMismatchError, match=r"lm_head.weight: the checkpoint has '\[13, 8\] torch.float32'"
    ):
        tiny_trainer(tmp_path, model=narrower).run(tmp_path / "checkpoints")
    other_base = TinyModel()
    other_base.frozen.data[3] += 1e-6
    with pytest.raises(CheckpointMismatchError, match=r"\(frozen\)"):
        tiny_trainer(tmp_path, model=other_base).run(tmp_path / "checkpoints")


def test_a_new_run_does_not_mix_with_checkpoints_that_are_there(tmp_path: Path) -> None:
    run_until(tmp_path, 7)
    before = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(CheckpointMismatchError, match=r"up to step-00000006\.ckpt"):
        tiny_trainer(tmp_path).run()
    assert (tmp_path / "log.jsonl").read_bytes() == before
    for place, words in ((tmp_path, "a folder without checkpoints"), (tmp_path / "no", "nothing there")):
        with pytest.raises(NoCheckpointError, match=rf"no run here to go on with: got {words}"):
            tiny_trainer(tmp_path / "other").run(place)


def test_checkpoints_need_a_source_that_can_be_resumed(tmp_path: Path) -> None:
    model = TinyModel()
    with pytest.raises(TrainingDataError, match="got list, expected a source with state_dict"):
        Trainer(model, model.loss, [], tiny_trainer().config, checkpoint_folder=tmp_path)
