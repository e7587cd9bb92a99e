"""`braid bench graft-quality`: whether grafted layers learn a text that their model knows little about.

Against the bare model, LoRA and an MLP adapter of the same number of parameters. Learning rates are chosen on
validation text, for each way of adding parameters by itself; what is reported is test text, over several seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from braid_fusion.resonance.config import COMPONENTS, FusionConfig
from braid_orchestrator.bench.finished_runs import FinishedRuns
from braid_orchestrator.bench.graft_runs import (
    GRAFT,
    LORA,
    METHODS,
    MLP,
    PRESETS,
    Runner,
    RunResult,
    RunSpec,
)
from braid_orchestrator.bench.machine import describe_machine
from braid_orchestrator.bench.report import Cell, Report, Table, Target
from braid_orchestrator.bench.run_pool import RunPool
from braid_orchestrator.bench.step import Progress

LABELS = {GRAFT: "grafted", LORA: "LoRA", MLP: "MLP adapter"}
ABLATED = "full"


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """``models`` are folders; ``text`` is a file. Every learning rate is tried with the first seed."""

    models: tuple[str, ...]
    text: str
    presets: tuple[str, ...] = PRESETS
    methods: tuple[str, ...] = METHODS
    num_seeds: int = 3
    num_steps: int = 200
    learning_rates: tuple[float, ...] = (3e-3, 1e-2, 2e-2)
    window: int = 128
    windows_per_step: int = 8
    held_out_bytes: int = 50_000
    ablate: bool = True

    def quick(self) -> QualityOptions:
        """Few short runs: shows that everything works, not who wins."""
        return replace(
            self,
            models=self.models[:1],
            presets=("minimal",),
            num_seeds=1,
            num_steps=2,
            learning_rates=(3e-3,),
            window=16,
            windows_per_step=2,
            held_out_bytes=600,
            ablate=False,
        )


@dataclass(frozen=True, slots=True)
class Contest:
    """All runs of one way of adding parameters to one model: which learning rate it got, and a result per seed."""

    learning_rate: float
    results: tuple[RunResult, ...]

    @property
    def test(self) -> tuple[float, ...]:
        """Bits per byte, by seed."""
        return tuple(result.test for result in self.results)


Key = tuple[str, str, str]  # model, preset, method
Pool = RunPool[RunSpec, RunResult]


def run_graft_quality(
    options: QualityOptions,
    progress: Progress = lambda what, done, total: None,
    finished_runs: Path | None = None,
) -> Report:
    """All runs, as many at a time as there are cores; those in ``finished_runs`` are not run again.

    Raises: BraidError if one fails.
    """
    finished = FinishedRuns(finished_runs, RunSpec, RunResult)
    with RunPool(Runner, _describe, progress, finished) as pool:
        bare = dict(
            zip(options.models, pool.run([_spec(options, model) for model in options.models]), strict=True)
        )
        contests = _contests(options, pool)
        ablations = _ablations(options, contests, pool) if options.ablate else {}
    return Report(
        benchmark="graft-quality",
        settings={
            "text": Path(options.text).parent.name + "/" + Path(options.text).name,
            "steps": options.num_steps,
            "tokens_per_step": options.window * options.windows_per_step,
            "window": options.window,
            "seeds": options.num_seeds,
            "learning_rates": ", ".join(f"{rate:g}" for rate in options.learning_rates),
        },
        machine=describe_machine(),
        tables=(
            *(_contest_table(model, options, bare[model], contests) for model in options.models),
            *(
                _ablation_table(model, contests[model, ABLATED, GRAFT], ablations[model])
                for model in ablations
            ),
        ),
        targets=tuple(_targets(options, contests)),
        raw={
            "options": asdict(options),
            "bare": {model: asdict(result) for model, result in bare.items()},
            "contests": [
                {"model": model, "preset": preset, "method": method, **asdict(contest)}
                for (model, preset, method), contest in contests.items()
            ],
            "ablations": {
                model: {name: [asdict(result) for result in results] for name, results in by_name.items()}
                for model, by_name in ablations.items()
            },
        },
    )


def _describe(spec: RunSpec) -> str:
    added = "bare" if spec.method is None else f"{LABELS[spec.method]} {spec.preset}"
    without = f" without {spec.without}" if spec.without else ""
    return f"{Path(spec.model).name}: {added}{without}"


def _spec(options: QualityOptions, model: str, **changes: Any) -> RunSpec:
    return RunSpec(
        model,
        options.text,
        num_steps=options.num_steps,
        window=options.window,
        windows_per_step=options.windows_per_step,
        held_out_bytes=options.held_out_bytes,
        **changes,
    )


def _contests(options: QualityOptions, pool: Pool) -> dict[Key, Contest]:
    keys: list[Key] = [
        (model, preset, method)
        for model in options.models
        for preset in options.presets
        for method in options.methods
    ]

    def specs(key: Key, rates: Sequence[float], seeds: Iterable[int]) -> list[RunSpec]:
        model, preset, method = key
        return [
            _spec(options, model, method=method, preset=preset, seed=seed, learning_rate=rate)
            for rate in rates
            for seed in seeds
        ]

    tried = _by_key(keys, pool, lambda key: specs(key, options.learning_rates, [0]))
    chosen = {
        key: min(zip(options.learning_rates, results, strict=True), key=lambda pair: pair[1].validation)
        for key, results in tried.items()
    }
    rest = _by_key(keys, pool, lambda key: specs(key, [chosen[key][0]], range(1, options.num_seeds)))
    return {key: Contest(chosen[key][0], (chosen[key][1], *rest[key])) for key in keys}


def _by_key(
    keys: Sequence[Any], pool: Pool, specs_of: Callable[[Any], list[RunSpec]]
) -> dict[Any, list[RunResult]]:
    specs = {key: specs_of(key) for key in keys}
    results = iter(pool.run(spec for key in keys for spec in specs[key]))
    return {key: [next(results) for _ in specs[key]] for key in keys}


def _ablations(
    options: QualityOptions, contests: Mapping[Key, Contest], pool: Pool
) -> dict[str, dict[str, list[RunResult]]]:
    components = [name for name in COMPONENTS if name in getattr(FusionConfig, ABLATED)().enabled_components]
    keys = [(model, name) for model in options.models for name in components]

    def specs(key: tuple[str, str]) -> list[RunSpec]:
        model, name = key
        rate = contests[model, ABLATED, GRAFT].learning_rate
        return [
            _spec(
                options,
                model,
                method=GRAFT,
                preset=ABLATED,
                without=name,
                seed=seed,
                learning_rate=rate,
            )
            for seed in range(options.num_seeds)
        ]

    found = _by_key(keys, pool, specs)
    return {model: {name: found[model, name] for name in components} for model in options.models}


def _contest_table(
    model: str, options: QualityOptions, bare: RunResult, contests: Mapping[Key, Contest]
) -> Table:
    rows: list[tuple[Cell, ...]] = [("bare", None, 0, f"{bare.test:.4f}", None, None, None)]
    for preset in options.presets:
        for method in options.methods:
            contest = contests[model, preset, method]
            results = contest.results
            rows.append(
                (
                    LABELS[method],
                    preset,
                    results[0].num_parameters,
                    f"{fmean(contest.test):.4f}",
                    f"{deviation(contest.test):.4f}",
                    f"{contest.learning_rate:g}",
                    fmean(result.seconds for result in results),
                )
            )
    return Table(
        Path(model).name,
        ("added", "size of", "trained parameters", "bits per byte", "± over seeds", "learning rate", "s/run"),
        tuple(rows),
        "Bits per byte of test text: mean and standard deviation over the seeds. LoRA and the MLP adapter are as "
        "large as the preset in the second column, as nearly as their ranks allow.",
    )


def _ablation_table(model: str, whole: Contest, ablations: Mapping[str, Sequence[RunResult]]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        ("nothing", whole.results[0].num_parameters, f"{fmean(whole.test):.4f}", None, None)
    ]
    for name, results in ablations.items():
        differences = [result.test - full for result, full in zip(results, whole.test, strict=True)]
        kept = getattr(FusionConfig, ABLATED)().without(name).enabled_components
        left_out = [name, *(one for one in COMPONENTS if one != name and one not in kept)]
        rows.append(
            (
                ", ".join(left_out),
                results[0].num_parameters,
                f"{fmean(result.test for result in results):.4f}",
                f"{fmean(differences):+.4f}",
                f"{deviation(differences):.4f}",
            )
        )
    return Table(
        f"{Path(model).name}: `{ABLATED}` without one component",
        ("without", "trained parameters", "bits per byte", "difference", "± over seeds"),
        tuple(rows),
        "A positive difference: the component helped. Seed by seed against the whole preset, at its learning rate.",
    )


def _targets(options: QualityOptions, contests: Mapping[Key, Contest]) -> Iterable[Target]:
    """Whether the best grafted preset beats each of the others at its size: a ratio below one."""
    for model in options.models:
        best = min(options.presets, key=lambda preset: fmean(contests[model, preset, GRAFT].test))
        graft = fmean(contests[model, best, GRAFT].test)
        for method in options.methods:
            if method != GRAFT:
                other = fmean(contests[model, best, method].test)
                yield Target(
                    f"{Path(model).name}: grafted {best} / {LABELS[method]} of its size",
                    graft / other,
                    1.0,
                    "<",
                )


def deviation(values: Sequence[float]) -> float:
    """The standard deviation; 0 of one alone."""
    return stdev(values) if len(values) > 1 else 0.0
