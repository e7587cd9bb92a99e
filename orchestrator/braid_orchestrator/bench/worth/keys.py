"""`braid bench worth keys`: what no mixing of outputs can do. One model knows numbers by their keys, one calculates;
neither can say what an expression over keys is worth.

For each seed both models are trained from nothing, then everything that could take a braid's place, and the braid.
After CALM's key-value arithmetic (arXiv 2401.02412).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from braid_orchestrator.bench.finished_runs import FinishedRuns
from braid_orchestrator.bench.machine import describe_machine
from braid_orchestrator.bench.report import Cell, Report, Table, Target
from braid_orchestrator.bench.run_pool import RunPool
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.worth.key_contestants import (
    BRAID,
    CONTESTANTS,
    GATE,
    NO_CROSS,
    UNMATCHED,
    KeyTrainingRecipe,
)
from braid_orchestrator.bench.worth.key_exercises import (
    CALCULATE,
    COMPOSE,
    COMPOSE_UNSEEN,
    SUBSTITUTE,
    TASKS,
    SpacedKeyRecipe,
)
from braid_orchestrator.bench.worth.key_parents import TABLE, GradualParentRecipe, PairsParentRecipe
from braid_orchestrator.bench.worth.key_readings import CHARACTERS
from braid_orchestrator.bench.worth.key_runs import (
    PARENTS,
    KeysRecipe,
    KeysResult,
    KeysRunner,
    KeysSpec,
)
from braid_orchestrator.bench.worth.timing import minutes_target

RUNS_FILE = "runs.jsonl"
# In percent. CALM's: 84, none, 72, 93.
AT_LEAST = {COMPOSE: 95.0, COMPOSE_UNSEEN: 90.0, CALCULATE: 95.0, SUBSTITUTE: 90.0}
OTHERS_AT_MOST = 5.0

Results = Mapping[int, Mapping[str, KeysResult]]  # by seed and who


@dataclass(frozen=True, slots=True)
class KeysOptions:
    """``seeds`` decide the table, the models' starts, and the order of exercises. ``contestants`` of all that there
    are take part. ``minutes_at_most``: what both models and the braid should take together, on two cores."""

    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: KeysRecipe = field(default_factory=KeysRecipe)
    contestants: tuple[str, ...] = CONTESTANTS
    benchmark: str = "worth-keys"
    minutes_at_most: float = 10.0

    def quick(self) -> KeysOptions:
        """Tiny models and few steps: shows that everything works, not who wins."""
        recipe = replace(
            self.recipe,
            keys=replace(self.recipe.keys, num_keys=20, num_trained=10),
            parents=replace(
                self.recipe.parents,
                width=16,
                num_layers=2,
                num_heads=2,
                mlp_width=32,
                table_steps=3,
                calculator_steps=3,
            ),
            training=replace(
                self.recipe.training, match_steps=2, num_steps=2, step_exercises=8, fusion_width=8
            ),
            num_tests=20,
        )
        return replace(self, seeds=self.seeds[:1], recipe=recipe)


# Who takes part in variants: how everybody else does is known from the plain experiment.
FEW = (GATE, NO_CROSS, BRAID)
# The experiment, and what is asked beyond it. Whatever a variant needs of its own stands here.
VARIANTS: Mapping[str, KeysOptions] = {
    "plain": KeysOptions(),
    "larger": KeysOptions(
        recipe=KeysRecipe(
            keys=SpacedKeyRecipe(num_keys=5000, num_trained=1000, num_digits=3, num_operands=3),
            parents=GradualParentRecipe(table_steps=2000, calculator_steps=3000, noise_warmup=0.15),
            training=KeyTrainingRecipe(match_steps=600, dropout=0.2),
        ),
        contestants=FEW,
        benchmark="worth-keys-larger",
        minutes_at_most=30.0,
    ),
    "tokenizers": KeysOptions(
        recipe=KeysRecipe(parents=PairsParentRecipe()),
        contestants=FEW,
        benchmark="worth-keys-tokenizers",
    ),
}


def run_keys(options: KeysOptions, work: Path, progress: Progress = lambda what, done, total: None) -> Report:
    """All runs, as many at a time as there are cores.

    Args:
        work: keeps models and the finished runs; what is there already is not run again.

    Raises: BraidError if a run fails; InvalidRequestError for a damaged file of runs.
    """
    started = time.perf_counter()
    stages = (PARENTS, options.contestants)
    finished = FinishedRuns(work / RUNS_FILE, KeysSpec, KeysResult)
    results: dict[int, dict[str, KeysResult]] = {}
    with RunPool[KeysSpec, KeysResult](partial(KeysRunner, str(work)), _describe, progress, finished) as pool:
        for stage in stages:
            specs = [KeysSpec(who, seed, options.recipe) for seed in options.seeds for who in stage]
            for spec, result in zip(specs, pool.run(specs), strict=True):
                results.setdefault(spec.seed, {})[spec.who] = result
    return Report(
        benchmark=options.benchmark,
        settings=_settings(options),
        machine=describe_machine(),
        tables=(_solved_table(results), _cost_table(results)),
        targets=_targets(results, stages, options.minutes_at_most),
        raw={
            "options": asdict(options),
            "wall_s": time.perf_counter() - started,
            "runs": {
                str(seed): {who: asdict(result) for who, result in by_run.items()}
                for seed, by_run in results.items()
            },
        },
    )


def _describe(spec: KeysSpec) -> str:
    return f"seed {spec.seed}: {spec.who}"


def _everybody(results: Results) -> list[str]:
    return list(next(iter(results.values())))


def _percent(results: Results, who: str, task: str) -> list[float]:
    return [100.0 * by_run[who].solved[task] for by_run in results.values()]


def _solved_table(results: Results) -> Table:
    rows = tuple(
        (who, *(_with_spread(_percent(results, who, task)) for task in TASKS)) for who in _everybody(results)
    )
    return Table(
        "Solved without a wrong character, in percent",
        ("", *TASKS),
        rows,
        "Mean of the seeds, and their least and greatest.",
    )


def _with_spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{fmean(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def _cost_table(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for who in _everybody(results):
        of_seeds = [by_run[who] for by_run in results.values()]
        rows.append(
            (
                who,
                of_seeds[0].num_parameters,
                round(fmean(result.seconds for result in of_seeds), 1),
                round(max(result.peak_mib for result in of_seeds)),
            )
        )
    return Table(
        "What it took",
        ("", "trained parameters", "seconds", "MiB"),
        tuple(rows),
        "Seconds: mean over the seeds, training and tests, on one core. Memory: the most that the run's process had, "
        "earlier runs in it included.",
    )


def _targets(results: Results, stages: Sequence[Sequence[str]], minutes_at_most: float) -> tuple[Target, ...]:
    reached = [
        Target(f"braid: {task}", fmean(_percent(results, BRAID, task)), limit, ">=", "%")
        for task, limit in AT_LEAST.items()
    ]
    others = [who for who in _everybody(results) if who not in (BRAID, UNMATCHED)]
    kept_out = [
        Target(
            f"best of the others: {task}",
            max(fmean(_percent(results, who, task)) for who in others),
            OTHERS_AT_MOST,
            "<=",
            "%",
        )
        for task in (COMPOSE, COMPOSE_UNSEEN)
    ]
    # The two models train at the same time, each on a core.
    minutes = [
        (max(by_run[parent].seconds for parent in PARENTS) + by_run[BRAID].seconds) / 60.0
        for by_run in results.values()
    ]
    return (
        *reached,
        *kept_out,
        Target("models and braid, from nothing", max(minutes), minutes_at_most, "<=", "min"),
        minutes_target(
            ({who: result.seconds for who, result in by_run.items()} for by_run in results.values()),
            stages,
        ),
    )


def _settings(options: KeysOptions) -> dict[str, object]:
    recipe = options.recipe
    keys, parents, training = recipe.keys, recipe.parents, recipe.training
    return {
        "seeds": ", ".join(map(str, options.seeds)),
        "keys": f"{keys.num_keys}, of which {keys.num_trained} in expressions that are trained on",
        "expressions": f"{keys.num_operands} operands of {keys.num_digits} digits",
        "table_reads": "characters" if parents.reading(TABLE) is CHARACTERS else "pairs of letters",
        "models": f"{parents.num_layers} layers of width {parents.width}, the table's one more",
        "own_training": f"{parents.table_steps} and {parents.calculator_steps} steps of {parents.step_exercises}",
        "contestants": f"{training.match_steps} and {training.num_steps} steps of {training.step_exercises}",
        "tests": f"{recipe.num_tests} of each task",
    }
