"""One run of arithmetic over keys: a model trained from nothing, or a contestant.

Everything that decides a run is in its spec; it is done in a process of its own, on one core.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from braid_orchestrator.bench.machine import peak_bytes
from braid_orchestrator.bench.worth.key_answers import Answerer, model_predict, share_solved
from braid_orchestrator.bench.worth.key_contestants import (
    KeyContest,
    KeyTrainingRecipe,
)
from braid_orchestrator.bench.worth.key_exercises import KeyRecipe, KeyTasks
from braid_orchestrator.bench.worth.key_parents import CALCULATOR, TABLE, KeyParentRecipe, train_parent
from braid_orchestrator.bench.worth.models import load_llama, save_model
from braid_orchestrator.demo.recipe import digest

PARENTS = (TABLE, CALCULATOR)


@dataclass(frozen=True, slots=True)
class KeysRecipe:
    """All settings of the experiment but its seed. ``num_tests`` exercises of each task."""

    keys: KeyRecipe = field(default_factory=KeyRecipe)
    parents: KeyParentRecipe = field(default_factory=KeyParentRecipe)
    training: KeyTrainingRecipe = field(default_factory=KeyTrainingRecipe)
    num_tests: int = 1000


@dataclass(frozen=True, slots=True)
class KeysSpec:
    """``who``: one of `PARENTS` or `CONTESTANTS`."""

    who: str
    seed: int
    recipe: KeysRecipe


@dataclass(frozen=True, slots=True)
class KeysResult:
    """``solved``: the share of exercises by task. ``peak_mib`` is the process's, all its runs so far together."""

    solved: dict[str, float]
    num_parameters: int
    seconds: float
    peak_mib: float


class KeysRunner:
    """Keeps the models that it trains in folders of ``work``; both must be there before a contestant runs."""

    def __init__(self, work: str) -> None:
        torch.set_num_threads(1)
        disable_progress_bar()  # transformers would draw one per model into the benchmark's own
        self._work = Path(work)

    def run(self, spec: KeysSpec) -> KeysResult:
        """Train, evaluate. Raises: TrainingError, BraidError."""
        started = time.perf_counter()
        recipe = spec.recipe
        torch.manual_seed(spec.seed)  # the same whatever the process has run before
        tasks = KeyTasks(recipe.keys, spec.seed)
        if spec.who in PARENTS:
            model = train_parent(spec.who, tasks, recipe.parents)
            save_model(model, self._folder(spec.who, spec))
            size = sum(one.numel() for one in model.parameters())
            answerer = Answerer(model_predict(model), recipe.parents.reading(spec.who), size)
        else:
            table, calculator = (
                load_llama(self._folder(parent, spec)).requires_grad_(False) for parent in PARENTS
            )
            contest = KeyContest(tasks, table, calculator, recipe.parents, recipe.training)
            answerer = contest.train(spec.who)
        solved = {
            task: share_solved(answerer, exercises)
            for task, exercises in tasks.tests(recipe.num_tests).items()
        }
        seconds = time.perf_counter() - started
        return KeysResult(solved, answerer.num_parameters, seconds, peak_bytes() / 2**20)

    def _folder(self, parent: str, spec: KeysSpec) -> Path:
        made_by = digest([asdict(spec.recipe.keys), asdict(spec.recipe.parents)])
        return self._work / f"seed-{spec.seed}-{made_by}" / parent
