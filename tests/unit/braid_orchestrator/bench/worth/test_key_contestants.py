"""Who answers arithmetic over keys: everybody runs, what is frozen stays, the measure counts whole answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from braid_orchestrator.bench.worth.key_contestants import (
    BRAID,
    CONTESTANTS,
    LORA,
    STACKS,
    UNIFORM,
    KeyContest,
    share_solved,
)
from braid_orchestrator.bench.worth.key_exercises import ALPHABET, TASKS, ExerciseBatch, KeyTasks
from braid_orchestrator.bench.worth.key_parents import CALCULATOR, TABLE, train_parent
from braid_orchestrator.bench.worth.key_runs import KeysRunner, KeysSpec
from braid_orchestrator.bench.worth.keys import KeysOptions

RECIPE = KeysOptions().quick().recipe


@pytest.fixture(scope="module")
def contest() -> KeyContest:
    tasks = KeyTasks(RECIPE.keys, 0)
    models = [train_parent(who, tasks, RECIPE.parents) for who in (TABLE, CALCULATOR)]
    return KeyContest(tasks, *models, RECIPE.parents, RECIPE.training)


def test_everybody_answers_and_both_models_stay_as_they_are(contest: KeyContest) -> None:
    before = {
        name: tensor.clone()
        for model in (contest.table, contest.calculator)
        for name, tensor in model.state_dict(prefix=str(id(model))).items()
    }
    tests = contest.tasks.tests(6)
    sizes = {}
    for who in CONTESTANTS:
        predict, sizes[who] = contest.train(who)
        assert all(0.0 <= share_solved(predict, tests[task]) <= 1.0 for task in TASKS)
    assert sizes[UNIFORM] == 0 and sizes[BRAID] == contest.build(STACKS[BRAID])[1].num_parameters()
    assert 0.5 < sizes[LORA] / sizes[BRAID] < 2.0
    for model in (contest.table, contest.calculator):
        for name, tensor in model.state_dict(prefix=str(id(model))).items():
            assert torch.equal(tensor, before[name]), name


def test_one_wrong_character_is_a_wrong_answer(contest: KeyContest) -> None:
    draw = random.Random(1)
    exercises = [contest.tasks.calculate(draw) for _ in range(7)]

    def right_but_for(wrong: set[int]) -> float:
        def predict(batch: ExerciseBatch) -> Tensor:
            said = batch.targets_R.clone()
            for row in wrong:
                said[row] = (said[row] + 1) % len(ALPHABET)
            return torch.nn.functional.one_hot(said, len(ALPHABET)).float().log()

        return share_solved(predict, exercises)

    assert right_but_for(set()) == 1.0
    assert right_but_for({0}) == pytest.approx(6 / 7)
    assert right_but_for({0, 1}) == pytest.approx(6 / 7)  # both of the first answer


def test_a_run_is_its_spec(tmp_path: Path) -> None:
    def results(folder: str) -> list[dict[str, float]]:
        runner = KeysRunner(str(tmp_path / folder))
        return [runner.run(KeysSpec(who, 1, RECIPE)).solved for who in (TABLE, CALCULATOR, BRAID)]

    threads = torch.get_num_threads()
    try:
        assert results("one") == results("two")
    finally:
        torch.set_num_threads(threads)
