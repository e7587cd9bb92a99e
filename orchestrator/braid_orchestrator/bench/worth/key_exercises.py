"""Arithmetic over keys, the tasks: a secret table of keys and numbers, and what is to be answered.

Three kinds of exercise, in columns as a table prints them: texts stand to the left of their field, numbers to the
right. A field is as wide as a key and all digits but one, and a gap.

    substitute    "ab +cd >"   →  " 37+ 42"      knows the table
    calculate     " 37+ 42="   →  "97"           the sum, 79, with its last digit first
    compose       "ab +cd ="   →  "97"           the same over keys: nobody is trained on it but what is compared

Knows neither models nor how they read. After CALM (arXiv 2401.02412), section 4.1.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

START = "\n"  # every exercise begins with the end of a line before it
HELD_OUT_ONE_IN = 10

SUBSTITUTE, CALCULATE = "substitution", "plain arithmetic"
COMPOSE, COMPOSE_UNSEEN = "expressions unseen in training", "expressions over keys unseen in training"
TASKS = (SUBSTITUTE, CALCULATE, COMPOSE, COMPOSE_UNSEEN)


@dataclass(frozen=True, slots=True)
class Exercise:
    """A line of text in parts; those that are answers count."""

    parts: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        """With the start."""
        return START + "".join(text for text, _ in self.parts)


@dataclass(frozen=True, slots=True)
class KeyRecipe:
    """``num_keys`` keys of two letters or more stand for numbers of exactly ``num_digits`` digits; expressions over
    the first ``num_trained`` of them may be trained on. Expressions have ``num_operands`` operands."""

    num_keys: int = 1000
    num_trained: int = 200
    num_digits: int = 2
    num_operands: int = 2

    @property
    def key_length(self) -> int:
        """Of all keys: so many letters that there are twice as many keys as are needed, or nearly."""
        return 2 if self.num_keys <= 2000 else 3

    @property
    def gap(self) -> int:
        """How far behind its key's last letter a number's first digit stands."""
        return 0

    @property
    def field(self) -> int:
        """How many characters an operand takes."""
        return self.key_length + self.num_digits - 1 + self.gap

    @property
    def length(self) -> int:
        """Of the longest exercise: operands with operators, twice, two marks and the start."""
        return 2 * self.num_operands * (self.field + 1) + 2


@dataclass(frozen=True, slots=True)
class SpacedKeyRecipe(KeyRecipe):
    """The same with numbers that begin behind their keys. All letters of a key then stand where numbers have blanks,
    and nobody who hears a number there needs to know which letter is the last. A recipe of its own, so that finished
    runs without a gap stay what they are."""

    gap: int = 1


@dataclass(frozen=True)
class KeyTasks:
    """The table of one seed, and exercises about it."""

    recipe: KeyRecipe
    seed: int

    @cached_property
    def values(self) -> dict[str, int]:
        """The table. No key has a letter twice in a row, which a model that sees no start could not tell from one."""
        draw = random.Random(f"keys {self.seed}")
        names = [
            "".join(letters)
            for letters in itertools.product(string.ascii_letters, repeat=self.recipe.key_length)
            if all(one != next_one for one, next_one in itertools.pairwise(letters))
        ]
        low, high = 10 ** (self.recipe.num_digits - 1), 10**self.recipe.num_digits
        return {key: draw.randrange(low, high) for key in draw.sample(names, self.recipe.num_keys)}

    @cached_property
    def all_keys(self) -> list[str]:
        """In the order in which they were drawn."""
        return list(self.values)

    @cached_property
    def shuffled_keys(self) -> list[str]:
        """All keys, those that expressions are trained over among the others."""
        keys = list(self.all_keys)
        random.Random(f"order {self.seed}").shuffle(keys)
        return keys

    @cached_property
    def trained_keys(self) -> list[str]:
        """Whose expressions may be trained on."""
        return self.all_keys[: self.recipe.num_trained]

    @cached_property
    def unseen_keys(self) -> list[str]:
        """All others."""
        return self.all_keys[self.recipe.num_trained :]

    def substitute(self, draw: random.Random, keys: Sequence[str]) -> Exercise:
        """A key, or an expression over keys, and the same in numbers."""
        count = 1 if draw.random() < 0.3 else self.recipe.num_operands
        operands, operators = self._expression(draw, keys, count)
        numbers = [self._number(self.values[key]) for key in operands]
        asked = _join([self._key(key) for key in operands], operators)
        return Exercise(((asked + ">", False), (_join(numbers, operators) + "\n", True)))

    def glossed(self, draw: random.Random, keys: Sequence[str]) -> Exercise:
        """An expression over keys, behind some of which stands what they are worth: how the table is learned."""
        count = draw.randrange(1, self.recipe.num_operands + 2)
        operands, operators = self._expression(draw, keys, count)
        parts: list[tuple[str, bool]] = []
        for index, key in enumerate(operands):
            parts.append(((operators[index - 1] if index else "") + self._key(key), False))
            if index == count - 1 or draw.random() < 0.5:
                parts.append((str(self.values[key]), True))
        return Exercise(tuple(parts))

    def calculate(self, draw: random.Random, *, held_out: bool = False) -> Exercise:
        """An expression over numbers. A tenth of all expressions over numbers as the table has them is held out, and
        only these are asked for with ``held_out``; otherwise there are smaller numbers among them."""
        low, high = 10 ** (self.recipe.num_digits - 1), 10**self.recipe.num_digits
        while True:
            numbers = [draw.randrange(low if held_out else 0, high) for _ in range(self.recipe.num_operands)]
            operators = [draw.choice("+-") for _ in numbers[1:]]
            if self._is_held_out(numbers, operators) == held_out:
                return self._calculation(numbers, operators)

    def calculate_less(self, draw: random.Random) -> Exercise:
        """An expression over numbers of which each may have fewer digits, or be zero. None of those that are held
        out."""
        while True:
            digits = [draw.randrange(self.recipe.num_digits + 1) for _ in range(self.recipe.num_operands)]
            numbers = [draw.randrange(10**one) for one in digits]
            operators = [draw.choice("+-") for _ in numbers[1:]]
            if not self._is_held_out(numbers, operators):
                return self._calculation(numbers, operators)

    def compose(self, draw: random.Random, keys: Sequence[str], *, held_out: bool | None = False) -> Exercise:
        """An expression over keys. ``held_out``: whether of the tenth that is; None: either."""
        while True:
            operands, operators = self._expression(draw, keys, self.recipe.num_operands)
            if held_out is None or _is_held_out(_join(operands, operators)) == held_out:
                numbers = [self.values[key] for key in operands]
                asked = _join([self._key(key) for key in operands], operators)
                return Exercise(((asked + "=", False), (_answer(numbers, operators), True)))

    def substituted(self, exercise: Exercise) -> Exercise:
        """A composition with its keys replaced by their numbers, character by character in the same places."""
        (asked, _), *rest = exercise.parts
        width = self.recipe.field
        fields = [asked[begin : begin + width] for begin in range(0, len(asked) - 1, width + 1)]
        operators = [asked[begin] for begin in range(width, len(asked) - 1, width + 1)]
        numbers = [self._number(self.values[field.rstrip()]) for field in fields]
        return Exercise(((_join(numbers, operators) + "=", False), *rest))

    def tests(self, count: int) -> dict[str, list[Exercise]]:
        """By task, always the same ones: none of the last three kinds is in any training."""
        draw = random.Random(f"tests {self.seed}")
        make: dict[str, Callable[[], Exercise]] = {
            SUBSTITUTE: lambda: self.substitute(draw, self.all_keys),
            CALCULATE: lambda: self.calculate(draw, held_out=True),
            COMPOSE: lambda: self.compose(draw, self.trained_keys, held_out=True),
            COMPOSE_UNSEEN: lambda: self.compose(draw, self.unseen_keys, held_out=None),
        }
        return {task: [make[task]() for _ in range(count)] for task in TASKS}

    def _expression(
        self, draw: random.Random, keys: Sequence[str], count: int
    ) -> tuple[list[str], list[str]]:
        return [draw.choice(keys) for _ in range(count)], [draw.choice("+-") for _ in range(count - 1)]

    def _calculation(self, numbers: Sequence[int], operators: Sequence[str]) -> Exercise:
        asked = _join([self._number(number) for number in numbers], operators)
        return Exercise(((asked + "=", False), (_answer(numbers, operators), True)))

    def _is_held_out(self, numbers: Sequence[int], operators: Sequence[str]) -> bool:
        """Of expressions as the table can have them: with all operands, and all digits."""
        is_whole = len(numbers) == self.recipe.num_operands and min(numbers) >= 10 ** (
            self.recipe.num_digits - 1
        )
        return is_whole and _is_held_out(_join(map(str, numbers), operators))

    def _key(self, key: str) -> str:
        return key.ljust(self.recipe.field)

    def _number(self, number: int) -> str:
        return str(number).rjust(self.recipe.field)


@dataclass(frozen=True, slots=True)
class ExerciseBatches:
    """Endless batches of ``size`` exercises that ``make`` gives, which is told how many batches there were before;
    the same ones each time they are asked for."""

    make: Callable[[random.Random, int], Exercise]
    size: int
    seed: str

    def __iter__(self) -> Iterator[list[Exercise]]:
        draw = random.Random(self.seed)
        for number in itertools.count():
            yield [self.make(draw, number) for _ in range(self.size)]


def _join(operands: Sequence[str] | Iterator[str], operators: Sequence[str]) -> str:
    return "".join(itertools.chain(*itertools.zip_longest(operands, operators, fillvalue="")))


def _answer(numbers: Sequence[int], operators: Sequence[str]) -> str:
    """With the last digit first, as one calculates by hand; a minus stands before it."""
    result = numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        result += number if operator == "+" else -number
    return ("-" if result < 0 else "") + str(abs(result))[::-1] + "\n"


def _is_held_out(expression: str) -> bool:
    """The same on every machine."""
    code = 0
    for character in expression:
        code = (code * 131 + ord(character)) % 1_000_003
    return code % HELD_OUT_ONE_IN == 0
