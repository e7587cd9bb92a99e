"""What the two models over keys are trained on, as recipes have it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from braid_orchestrator.bench.worth.key_exercises import KeyRecipe, KeyTasks
from braid_orchestrator.bench.worth.key_parents import CALCULATOR, GradualParentRecipe, train_parent

TASKS = KeyTasks(KeyRecipe(num_keys=20, num_trained=10), 0)


@dataclass(frozen=True)
class Told(GradualParentRecipe):
    """Notes what it is asked."""

    asked: tuple[list[float], ...] = ([],)

    def is_ready_for_noise(self, loss: float) -> bool:
        self.asked[0].append(loss)
        return super().is_ready_for_noise(loss)


def losses(calm_loss: float) -> list[float]:
    recipe = Told(
        width=16,
        num_layers=1,
        mlp_width=16,
        calculator_steps=4,
        step_exercises=8,
        noise=50.0,
        noise_warmup=1.0,
        calm_loss=calm_loss,
        asked=([],),
    )
    train_parent(CALCULATOR, TASKS, recipe)
    return recipe.asked[0]


def test_noise_waits_until_the_calculator_can_calculate() -> None:
    waits, grows = losses(0.0), losses(100.0)
    assert len(waits) == 4 and waits[0] == grows[0]
    assert waits[1:] != grows[1:]
    recipe = GradualParentRecipe(calm_loss=0.25)
    assert recipe.is_ready_for_noise(0.2) and not recipe.is_ready_for_noise(0.3)


def test_calculations_are_easier_in_the_first_steps_alone() -> None:
    recipe = GradualParentRecipe(calculator_steps=10, easier=0.7, easier_until=0.5)

    def share_of_two_digits(step: int) -> float:
        draw = Random(step)
        exercises = [recipe.calculate(TASKS, step, draw) for _ in range(1000)]
        return sum(len(re.findall(r"\d\d", one.parts[0][0])) == 2 for one in exercises) / len(exercises)

    whole = 0.9**2  # numbers from 0 to 99
    for step in range(10):
        if step < 5:
            assert share_of_two_digits(step) < 0.5, step
        else:
            assert abs(share_of_two_digits(step) - whole) < 0.05, step
