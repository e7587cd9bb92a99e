"""Arithmetic over keys: answers are right, nothing that is tested is trained on, places agree."""

from __future__ import annotations

import random
from itertools import islice, pairwise

import pytest

from braid_orchestrator.bench.worth.key_exercises import (
    CALCULATE,
    COMPOSE,
    COMPOSE_UNSEEN,
    START,
    SUBSTITUTE,
    Exercise,
    ExerciseBatches,
    KeyRecipe,
    KeyTasks,
    SpacedKeyRecipe,
)
from braid_orchestrator.bench.worth.key_readings import ALPHABET
from braid_orchestrator.bench.worth.keys import VARIANTS

RECIPES = [KeyRecipe(), VARIANTS["larger"].recipe.keys]


@pytest.fixture(params=RECIPES, ids=["small", "large"])
def tasks(request: pytest.FixtureRequest) -> KeyTasks:
    return KeyTasks(request.param, seed=3)


def asked_and_answer(exercise: Exercise) -> tuple[str, str]:
    (asked, asked_counts), (answer, answer_counts) = exercise.parts
    assert (asked_counts, answer_counts) == (False, True)
    return asked, answer


def in_numbers(tasks: KeyTasks, asked: str) -> str:
    """What Python can calculate."""
    for key in sorted(set("".join(c if c.isalpha() else " " for c in asked).split())):
        asked = asked.replace(key, str(tasks.values[key]))
    return asked.rstrip("=>").replace(" ", "")


def value(answer: str) -> int:
    sign, digits = (-1, answer[1:]) if answer.startswith("-") else (1, answer)
    return sign * int(digits.strip()[::-1])


def test_a_table_is_its_seed_and_has_numbers_of_one_length(tasks: KeyTasks) -> None:
    recipe = tasks.recipe
    assert tasks.values == KeyTasks(recipe, 3).values != KeyTasks(recipe, 4).values
    assert len(tasks.values) == recipe.num_keys == len(tasks.trained_keys) + len(tasks.unseen_keys)
    assert len(tasks.trained_keys) == recipe.num_trained
    assert not set(tasks.trained_keys) & set(tasks.unseen_keys)
    assert {len(str(number)) for number in tasks.values.values()} == {recipe.num_digits}
    assert all(one != after for key in tasks.values for one, after in pairwise(key))


def test_answers_are_right(tasks: KeyTasks) -> None:
    draw = random.Random(1)
    for _ in range(200):
        calculations = (tasks.calculate(draw), tasks.calculate_less(draw))
        for exercise in (*calculations, tasks.compose(draw, tasks.trained_keys, held_out=None)):
            asked, answer = asked_and_answer(exercise)
            assert value(answer) == calculated(in_numbers(tasks, asked))
        asked, answer = asked_and_answer(tasks.substitute(draw, tasks.all_keys))
        assert in_numbers(tasks, asked) == answer.replace(" ", "").strip()


def calculated(expression: str) -> int:
    total, number, sign = 0, "", 1
    for character in expression + "+":
        if character in "+-":
            total, number, sign = total + sign * int(number), "", 1 if character == "+" else -1
        else:
            number += character
    return total


def test_a_substituted_expression_has_its_numbers_where_its_keys_were(tasks: KeyTasks) -> None:
    draw = random.Random(2)
    for _ in range(100):
        exercise = tasks.compose(draw, tasks.trained_keys)
        asked, answer = asked_and_answer(exercise)
        meant, same_answer = asked_and_answer(tasks.substituted(exercise))
        assert same_answer == answer and len(meant) == len(asked)
        assert in_numbers(tasks, asked) == in_numbers(tasks, meant)
        operators = [index for index, character in enumerate(asked) if character in "+-="]
        assert operators == [index for index, character in enumerate(meant) if character in "+-="]
        # Every digit stands where the key has been read to its end, or later.
        for begin in (0, *(index + 1 for index in operators[:-1])):
            first_digit = next(index for index in range(begin, len(meant)) if meant[index].isdigit())
            assert first_digit - begin == tasks.recipe.key_length - 1 + tasks.recipe.gap


def test_what_is_tested_is_in_no_training(tasks: KeyTasks) -> None:
    tests = tasks.tests(200)
    draw = random.Random(3)
    trained = {tasks.compose(draw, tasks.trained_keys).text for _ in range(3000)}
    trained |= {make(draw).text for make in (tasks.calculate, tasks.calculate_less) for _ in range(3000)}
    for task in (CALCULATE, COMPOSE, COMPOSE_UNSEEN):
        assert not trained & {exercise.text for exercise in tests[task]}
    unseen = set(tasks.unseen_keys)
    for exercise in tests[COMPOSE_UNSEEN]:
        asked, _ = asked_and_answer(exercise)
        keys = "".join(c if c.isalpha() else " " for c in asked).split()
        assert set(keys) <= unseen and len(keys) == tasks.recipe.num_operands
    assert all(asked_and_answer(exercise)[0].endswith(">") for exercise in tests[SUBSTITUTE])
    assert tasks.tests(200) == tests


def test_a_gloss_says_what_the_key_before_it_is_worth(tasks: KeyTasks) -> None:
    draw = random.Random(4)
    for _ in range(100):
        parts = tasks.glossed(draw, tasks.all_keys).parts
        assert parts[-1][1]
        for (before, _), (text, counts) in pairwise(parts):
            if counts:
                assert int(text) == tasks.values[before.strip("+- ")]


def test_batches_come_again(tasks: KeyTasks) -> None:
    def make(draw: random.Random, number: int) -> Exercise:
        return tasks.glossed(draw, tasks.all_keys[: number + 1])

    batches = ExerciseBatches(make, 4, "seed")
    assert list(islice(batches, 3)) == list(islice(batches, 3))
    assert list(islice(batches, 2)) != list(islice(ExerciseBatches(make, 4, "other"), 2))
    first = next(iter(batches))
    assert all(tasks.all_keys[0] in exercise.text for exercise in first)
    assert not any(tasks.all_keys[1] in exercise.text for exercise in first)


def test_no_text_is_longer_than_the_recipe_says(tasks: KeyTasks) -> None:
    texts = [exercise.text for exercises in tasks.tests(100).values() for exercise in exercises]
    draw = random.Random(6)
    texts += [tasks.glossed(draw, tasks.all_keys).text for _ in range(300)]
    assert max(map(len, texts)) <= tasks.recipe.length
    assert all(text.startswith(START) and set(text) <= set(ALPHABET) for text in texts)


def test_easier_calculations_have_smaller_numbers_in_the_same_places(tasks: KeyTasks) -> None:
    draw = random.Random(8)
    asked = [asked_and_answer(tasks.calculate_less(draw))[0] for _ in range(300)]
    assert {len(text) for text in asked} == {len(asked_and_answer(tasks.calculate(draw))[0])}
    digits = {
        len(number)
        for text in asked
        for number in text.replace("-", "+").strip("=").replace(" ", "").split("+")
    }
    assert digits == set(range(1, tasks.recipe.num_digits + 1))


@pytest.mark.parametrize(
    ("recipe", "key", "number"),
    [
        (KeyRecipe(), "ab ", " 37"),
        (SpacedKeyRecipe(), "ab  ", "  37"),
        (SpacedKeyRecipe(gap=2), "ab   ", "   37"),
    ],
)
def test_a_number_begins_where_its_key_ends_or_behind(recipe: KeyRecipe, key: str, number: str) -> None:
    tasks = KeyTasks(recipe, seed=3)
    tasks.values["ab"] = 37
    draw = random.Random(9)
    exercise = tasks.compose(draw, ["ab"], held_out=None)
    (asked, _), (answer, _) = exercise.parts
    (substituted, _), (same, _) = tasks.substituted(exercise).parts
    operator = asked[len(key)]
    assert asked == f"{key}{operator}{key}="
    assert (substituted, same) == (f"{number}{operator}{number}=", answer)
    gloss = tasks.glossed(draw, ["ab"])
    assert gloss.text.startswith(START + key) and gloss.text.endswith(key + "37")
