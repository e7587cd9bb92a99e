"""How exercises are read: tokens say the text, only answers are predicted, one tokenizer reads as ever."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid_fusion.alignment import SettlingTokenizer, token_pieces
from braid_orchestrator.bench.worth.key_exercises import START, Exercise, KeyTasks
from braid_orchestrator.bench.worth.key_readings import ALPHABET, CHARACTERS, PAIRS, Reading, pack
from braid_orchestrator.bench.worth.keys import VARIANTS
from braid_rpc.errors import InvalidRequestError

READINGS = {"characters": CHARACTERS, "pairs": PAIRS}


@pytest.fixture(params=READINGS)
def reading(request: pytest.FixtureRequest) -> Reading:
    return READINGS[request.param]


def exercises_of(tasks: KeyTasks, draw: random.Random) -> list[Exercise]:
    kinds = (
        lambda draw: tasks.glossed(draw, tasks.all_keys),
        lambda draw: tasks.substitute(draw, tasks.all_keys),
        tasks.calculate,
        lambda draw: tasks.compose(draw, tasks.unseen_keys),
    )
    return [make(draw) for make in kinds for _ in range(8)]


def said(reading: Reading, ids: list[int]) -> str:
    return reading.tokenizer.decode(ids)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_exercises_predict_their_answers_and_nothing_else(reading: Reading, variant: str) -> None:
    exercises = exercises_of(KeyTasks(VARIANTS[variant].recipe.keys, 3), random.Random(5))
    batch = pack(exercises, reading)
    assert len(set(batch.lengths)) == 1 and sum(batch.lengths) == len(batch.token_ids_T)
    rows = batch.loss_rows_R.split(list(batch.rows_E))
    targets = batch.targets_R.split(list(batch.rows_E))
    for index, exercise in enumerate(exercises):
        begin, text = index * batch.lengths[0], exercise.text
        answers = "".join(part for part, counts in exercise.parts if counts)
        assert [said(reading, [token]) for token in targets[index].tolist()] == [*answers]
        for row, target in zip(rows[index].tolist(), targets[index].tolist(), strict=True):
            assert text.startswith(said(reading, [*batch.token_ids_T[begin : row + 1].tolist(), target]))
        assert said(reading, [int(batch.token_ids_T[begin])]) == START


def test_batches_of_characters_are_those_of_a_dictionary() -> None:
    """What experiments with one tokenizer have been read as, spelt out: it decides their figures."""
    exercises = exercises_of(KeyTasks(VARIANTS["plain"].recipe.keys, 3), random.Random(7))
    batch = pack(exercises, CHARACTERS)
    length = max(len(exercise.text) for exercise in exercises) - 1
    ids, rows, targets = [], [], []
    for number, exercise in enumerate(exercises):
        ids += [ALPHABET.index(character) for character in exercise.text[:-1].ljust(length, START)]
        at = len(START)
        for part, counts in exercise.parts:
            for character in part:
                if counts:
                    rows.append(number * length + at - 1)
                    targets.append(ALPHABET.index(character))
                at += 1
    assert torch.equal(batch.token_ids_T, torch.tensor(ids))
    assert torch.equal(batch.loss_rows_R, torch.tensor(rows))
    assert torch.equal(batch.targets_R, torch.tensor(targets))
    assert batch.lengths == (length,) * len(exercises)


def test_a_key_is_one_token_of_the_pairs() -> None:
    tasks = KeyTasks(VARIANTS["tokenizers"].recipe.keys, 3)
    assert all(len(PAIRS.encode(key)) == 1 and len(CHARACTERS.encode(key)) == 2 for key in tasks.values)
    assert len(PAIRS.encode("aa")) == 2
    draw = random.Random(8)
    for _ in range(50):
        exercise = tasks.compose(draw, tasks.trained_keys)
        num_keys = tasks.recipe.num_operands
        assert len(PAIRS.encode(exercise.text)) == len(exercise.text) - num_keys


@settings(max_examples=60, deadline=None)
@given(text=st.text(ALPHABET, max_size=40))
@pytest.mark.parametrize("name", READINGS)
def test_tokens_say_the_text(name: str, text: str) -> None:
    reading = READINGS[name]
    assert said(reading, reading.encode(text).ids) == text


def test_another_character_is_an_error(reading: Reading) -> None:
    with pytest.raises(InvalidRequestError, match="é"):
        reading.encode("ab é")


def test_a_character_is_known_at_once(reading: Reading) -> None:
    """What the calculator reads comes with each token of the table, not one later."""
    growing = SettlingTokenizer(reading.tokenizer.to_str()).begin()
    settled = [len(growing.push(character)) for character in "\nab +"]
    assert (settled == [1] * 5) == (reading is CHARACTERS)


def test_every_token_has_the_bytes_of_its_text(reading: Reading) -> None:
    pieces = token_pieces(reading.tokenizer.to_str(), reading.vocab_size)
    assert [piece.decode() for piece in pieces] == [said(reading, [id]) for id in range(reading.vocab_size)]
    assert [piece.decode() for piece in pieces[: len(ALPHABET)]] == [*ALPHABET]
