"""`braid bench worth specialists`: does braiding two specialists pay on text that mixes what they know?

For each seed two specialists are trained from one short common start, then everything that could take a braid's place
on the same mixed text, and the braid. What is reported is test text, by which nothing was chosen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from braid_orchestrator.bench.finished_runs import FinishedRuns
from braid_orchestrator.bench.machine import describe_machine
from braid_orchestrator.bench.report import Report
from braid_orchestrator.bench.run_pool import RunPool
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.worth.contest import BraidRecipe, TrainingRecipe
from braid_orchestrator.bench.worth.contest_result import ContestResult
from braid_orchestrator.bench.worth.measuring import VALIDATION
from braid_orchestrator.bench.worth.specialist_contestants import TRAINED
from braid_orchestrator.bench.worth.specialist_parents import KINDS, START, ParentRecipe
from braid_orchestrator.bench.worth.specialist_report import RUN_NAMES, specialist_report, specialist_targets
from braid_orchestrator.bench.worth.specialist_runs import (
    UNTRAINED,
    SpecialistRecipe,
    SpecialistRunner,
    SpecialistSpec,
)
from braid_orchestrator.bench.worth.specialist_texts import TextRecipe
from braid_orchestrator.bench.worth.texts import MIX
from braid_orchestrator.demo.corpus import read_corpus

BENCHMARK = "worth-specialists"
RUNS_FILE = "runs.jsonl"


@dataclass(frozen=True, slots=True)
class SpecialistOptions:
    """``seeds`` decide the models' starts, the order of texts, and the contestants' starts."""

    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: SpecialistRecipe = field(default_factory=SpecialistRecipe)

    def quick(self) -> SpecialistOptions:
        """Tiny models and few steps: shows that everything works, not who wins."""
        recipe = SpecialistRecipe(
            ParentRecipe(
                vocab_size=512,
                tokenizer_chars=50_000,
                width=32,
                num_layers=4,
                mlp_width=64,
                start_steps=4,
                own_steps=6,
                step_tokens=512,
            ),
            replace(
                self.recipe.texts,
                mixed_chars=30_000,
                pure_chars=5_000,
                validation_chars=3_000,
                test_chars=4_000,
            ),
            TrainingRecipe(num_steps=2, window=64, windows_per_step=4, num_evaluations=1),
            BraidRecipe(fusion_width=16, gate_hidden=16),
            window=128,
            corpus_share=0.1,
        )
        return replace(self, seeds=self.seeds[:1], recipe=recipe)


Pool = RunPool[SpecialistSpec, ContestResult]


def run_specialists(
    options: SpecialistOptions, work: Path, progress: Progress = lambda what, done, total: None
) -> Report:
    """All runs, as many at a time as there are cores.

    Args:
        work: keeps models and the finished runs; what is there already is not run again.

    Raises: BraidError if a run fails; InvalidRequestError for a damaged file of runs.
    """
    started = time.perf_counter()
    fingerprint = read_corpus(share=options.recipe.corpus_share).fingerprint()
    finished = FinishedRuns(work / RUNS_FILE, SpecialistSpec, ContestResult)
    results: dict[int, dict[str, ContestResult]] = {}
    with RunPool(partial(SpecialistRunner, str(work)), _describe, progress, finished) as pool:
        for seed in options.seeds:
            results[seed] = _run_seed(pool, options.recipe, seed, fingerprint)
    report = specialist_report(list(results.values()))
    intervals = report.intervals()
    return Report(
        benchmark=BENCHMARK if options.recipe.texts.mix == "modules" else f"{BENCHMARK}-parts",
        settings=_settings(options),
        machine=describe_machine(),
        tables=(report.table(intervals), report.costs(RUN_NAMES)),
        targets=specialist_targets(report),
        raw={
            "options": asdict(options),
            "corpus": fingerprint,
            "wall_s": time.perf_counter() - started,
            **report.raw(options.seeds, intervals),
        },
    )


def _run_seed(pool: Pool, recipe: SpecialistRecipe, seed: int, fingerprint: str) -> dict[str, ContestResult]:
    recipe = replace(
        recipe,
        parents=replace(recipe.parents, seed=seed),
        texts=replace(recipe.texts, seed=seed),
    )

    # Specialists don't depend on what the contestants do: another such recipe finds them trained.
    for_parents = SpecialistRecipe(
        recipe.parents, TextRecipe(kept_percent=recipe.texts.kept_percent), corpus_share=recipe.corpus_share
    )

    def run(
        whos: Sequence[str], best: str = "", recipe: SpecialistRecipe = recipe
    ) -> dict[str, ContestResult]:
        specs = [SpecialistSpec(who, seed, recipe, fingerprint, best) for who in whos]
        return dict(zip(whos, pool.run(specs), strict=True))

    results = run([START], recipe=for_parents)
    results |= run(KINDS, recipe=for_parents)
    results |= run([UNTRAINED])
    validation = {kind: results[UNTRAINED].figures[kind][VALIDATION][MIX] for kind in KINDS}
    return results | run(TRAINED, best=min(KINDS, key=validation.__getitem__))


def _describe(spec: SpecialistSpec) -> str:
    return f"seed {spec.seed}: {spec.who}"


def _settings(options: SpecialistOptions) -> dict[str, Any]:
    recipe = options.recipe
    parents, training = recipe.parents, recipe.training
    return {
        "seeds": ", ".join(map(str, options.seeds)),
        "mix": recipe.texts.mix,
        "specialists": f"{parents.num_layers} layers of width {parents.width}",
        "common_start": f"{parents.start_steps} steps",
        "own_training": f"{parents.own_steps} steps of {parents.step_tokens} tokens",
        "contestants": f"{training.num_steps} steps of {training.windows_per_step} windows of {training.window}",
        "points": recipe.braid.describe(),
    }
