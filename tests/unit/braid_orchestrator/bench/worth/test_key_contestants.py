"""Who answers arithmetic over keys: everybody runs, what is frozen stays, the measure counts whole answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from braid_fusion.stack import FusionStack
from braid_orchestrator.bench.worth.key_answers import Answerer, posterior_predict, share_solved
from braid_orchestrator.bench.worth.key_contestants import (
    BRAID,
    CONTESTANTS,
    LORA,
    STACKS,
    UNIFORM,
    KeyContest,
)
from braid_orchestrator.bench.worth.key_exercises import START, TASKS, Exercise, KeyTasks
from braid_orchestrator.bench.worth.key_parents import CALCULATOR, TABLE, train_parent
from braid_orchestrator.bench.worth.key_readings import ALPHABET, CHARACTERS, ExerciseBatch, pack
from braid_orchestrator.bench.worth.key_runs import KeysRunner, KeysSpec
from braid_orchestrator.bench.worth.keys import VARIANTS
from braid_orchestrator.training.braid_pass import run_pass
from braid_orchestrator.training.ports import TrainingShard


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def contest(variant: str) -> KeyContest:
    recipe = VARIANTS[variant].quick().recipe
    tasks = KeyTasks(recipe.keys, 0)
    models = [train_parent(who, tasks, recipe.parents) for who in (TABLE, CALCULATOR)]
    return KeyContest(tasks, *models, recipe.parents, recipe.training)


def test_everybody_answers_and_both_models_stay_as_they_are(contest: KeyContest) -> None:
    before = {
        name: tensor.clone()
        for model in (contest.table, contest.calculator)
        for name, tensor in model.state_dict(prefix=str(id(model))).items()
    }
    tests = contest.tasks.tests(6)
    sizes = {}
    for who in CONTESTANTS:
        answerer = contest.train(who)
        sizes[who] = answerer.num_parameters
        assert all(0.0 <= share_solved(answerer, tests[task]) <= 1.0 for task in TASKS)
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

        return share_solved(Answerer(predict, CHARACTERS, 0), exercises)

    assert right_but_for(set()) == 1.0
    assert right_but_for({0}) == pytest.approx(6 / 7)
    assert right_but_for({0, 1}) == pytest.approx(6 / 7)  # both of the first answer


def test_only_the_table_of_two_tokenizers_reads_pairs_and_it_is_the_anchor(
    contest: KeyContest, variant: str
) -> None:
    _, stack = contest.build(STACKS[BRAID])
    has_two = variant == "tokenizers"
    assert stack.plan.num_lanes == (2 if has_two else 1)
    assert stack.plan.shards[stack.plan.anchor].name == (TABLE if has_two else CALCULATOR)
    (receiver,) = stack.plan.points[0].receivers
    assert stack.plan.shards[receiver].name == CALCULATOR
    assert (contest.table.vocab_size > contest.calculator.vocab_size) == has_two


def test_answers_of_everybody_are_as_many_characters(contest: KeyContest) -> None:
    """Rows of an answer are the same in every reading: only so are shares of solved exercises comparable."""
    exercises = [one for tests in contest.tasks.tests(5).values() for one in tests]
    expected = pack(exercises, CHARACTERS).rows_E
    assert all(
        pack(exercises, contest.parents.reading(who)).rows_E == expected for who in (TABLE, CALCULATOR)
    )


def test_a_key_is_heard_where_its_last_letter_is_read(contest: KeyContest) -> None:
    """At that letter, and at the spaces behind it, the calculator hears of letters that it has read before."""
    torch.manual_seed(0)
    shards, stack = contest.build(STACKS[BRAID])
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    stack.eval()
    key = next(iter(contest.tasks.values))
    other = next(letter for letter in "xyz" if letter not in key) + key[1:]
    texts = [START + (name.ljust(contest.tasks.recipe.field) + "+") * 2 + "\n" for name in (key, other)]
    states = [_after_point(contest, shards, stack, text) for text in texts]
    assert states[0].shape[0] == len(texts[0]) - 1
    differs = ((states[0] - states[1]).abs().amax(-1) > 1e-6).tolist()
    assert not any(differs[: len(START)])
    last_letter = len(START) + len(key) - 1
    assert all(differs[last_letter : len(START) + contest.tasks.recipe.field])


def _after_point(contest: KeyContest, shards: list[TrainingShard], stack: FusionStack, text: str) -> Tensor:
    exercise = Exercise(((text[len(START) : -1], False), (text[-1], True)))
    batch = pack([exercise], contest.parents.reading(contest.anchor))
    heard: list[Tensor] = []
    fuse = stack.fuse

    def listening(*arguments: object) -> object:
        output = fuse(*arguments)  # type: ignore[arg-type]
        heard.append(output.states[0])  # type: ignore[arg-type]
        return output

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(stack, "fuse", listening)
        run_pass(shards, stack, batch.token_ids_T, batch.lengths, batch.targets_R, batch.loss_rows_R.tolist())
    return heard[0]


def test_a_run_is_its_spec(tmp_path: Path, variant: str) -> None:
    recipe = VARIANTS[variant].quick().recipe

    def results(folder: str) -> list[dict[str, float]]:
        runner = KeysRunner(str(tmp_path / folder))
        return [runner.run(KeysSpec(who, 1, recipe)).solved for who in (TABLE, CALCULATOR, BRAID)]

    threads = torch.get_num_threads()
    try:
        assert results("one") == results("two")
    finally:
        torch.set_num_threads(threads)


def test_a_posterior_mix_weighs_by_what_was_predicted_so_far() -> None:
    recipe = VARIANTS["plain"].quick().recipe
    tasks = KeyTasks(recipe.keys, 0)
    models = [train_parent(who, tasks, recipe.parents) for who in (TABLE, CALCULATOR)]
    shards, stack = KeyContest(tasks, *models, recipe.parents, recipe.training).build(STACKS[UNIFORM])
    exercise = tasks.tests(1)[TASKS[0]][0]
    batch = pack([exercise], CHARACTERS)
    ids = CHARACTERS.encode(exercise.text).ids
    with torch.inference_mode():
        logs = [model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1) for model in models]
        found = posterior_predict(shards, stack, 0.5)(batch)
    evidence, expected = torch.zeros(2), []
    for row, token_id in enumerate(ids[1:]):
        weights = evidence.log_softmax(0)
        expected.append(torch.logsumexp(torch.stack([one[row] for one in logs]) + weights[:, None], dim=0))
        evidence = 0.5 * evidence + torch.stack([one[row, token_id] for one in logs])
    torch.testing.assert_close(found, torch.stack(expected)[batch.loss_rows_R], rtol=1e-4, atol=1e-4)
