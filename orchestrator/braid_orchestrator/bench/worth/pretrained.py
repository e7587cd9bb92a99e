"""`braid bench worth pretrained`: does a pretrained model gain from a partner that reads by another tokenizer?

For each seed a partner is trained from nothing on text that the model doesn't know, then everything that could take a
braid's place on text that mixes what both know, and the braid. What is reported is test text, by which nothing was
chosen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from braid_orchestrator.bench.finished_runs import FinishedRuns
from braid_orchestrator.bench.machine import describe_machine
from braid_orchestrator.bench.report import Report
from braid_orchestrator.bench.run_pool import RunPool
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.worth.contest import TrainingRecipe
from braid_orchestrator.bench.worth.contest_result import ContestResult
from braid_orchestrator.bench.worth.measuring import VALIDATION
from braid_orchestrator.bench.worth.models import load_backend
from braid_orchestrator.bench.worth.pretrained_contestants import (
    PARTNER,
    SINGLES,
    TRAINED,
)
from braid_orchestrator.bench.worth.pretrained_report import (
    RUN_NAMES,
    pretrained_report,
    pretrained_targets,
)
from braid_orchestrator.bench.worth.pretrained_runs import (
    UNTRAINED,
    PretrainedRecipe,
    PretrainedRunner,
    PretrainedSpec,
)
from braid_orchestrator.bench.worth.pretrained_texts import read_known_text
from braid_orchestrator.bench.worth.texts import MIX
from braid_orchestrator.demo.corpus import read_corpus
from braid_rpc.cards import ShardCard
from braid_rpc.errors import ContextLengthError, UnsupportedModelError

BENCHMARK = "worth-pretrained"
RUNS_FILE = "runs.jsonl"


@dataclass(frozen=True, slots=True)
class PretrainedOptions:
    """``anchor`` is a model's folder, ``text`` a file or folder of what it knows. ``seeds`` decide the partner's
    start, the order of texts, and the contestants' starts."""

    anchor: Path
    text: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: PretrainedRecipe = field(default_factory=PretrainedRecipe)

    def quick(self) -> PretrainedOptions:
        """A tiny partner and few steps: shows that everything works, not who wins."""
        recipe = PretrainedRecipe(
            replace(
                self.recipe.partner,
                vocab_size=min(512, self.recipe.partner.vocab_size),
                tokenizer_chars=50_000,
                width=32,
                mlp_width=64,
                step_tokens=512,
                num_steps=4,
            ),
            replace(
                self.recipe.texts,
                mixed_chars=20_000,
                pure_chars=3_000,
                validation_chars=1_500,
                test_chars=2_000,
            ),
            TrainingRecipe(num_steps=2, window=64, num_evaluations=1),
            replace(self.recipe.braid, fusion_width=16, gate_hidden=16),
            window=128,
            corpus_share=0.1,
        )
        return replace(self, seeds=self.seeds[:1], recipe=recipe)


Pool = RunPool[PretrainedSpec, ContestResult]


def run_pretrained(
    options: PretrainedOptions, work: Path, progress: Progress = lambda what, done, total: None
) -> Report:
    """All runs, as many at a time as there are cores.

    Args:
        work: keeps partners and the finished runs; what is there already is not run again.

    Raises: BraidError if a run fails or the anchor can't take part; InvalidRequestError for a damaged file of runs,
        or text of too few documents.
    """
    started = time.perf_counter()
    disable_progress_bar()  # transformers would draw one into the benchmark's own
    card = _anchor_card(options)
    known = read_known_text(options.text)
    corpus = read_corpus(share=options.recipe.corpus_share).fingerprint()
    spec = PretrainedSpec(UNTRAINED, 0, options.recipe, card.model_hash, known.fingerprint(), corpus)
    finished = FinishedRuns(work / RUNS_FILE, PretrainedSpec, ContestResult)
    runner = partial(PretrainedRunner, str(work), str(options.anchor), str(options.text))
    results: dict[int, dict[str, ContestResult]] = {}
    with RunPool(runner, _describe, progress, finished) as pool:
        for seed in options.seeds:
            results[seed] = _run_seed(pool, replace(spec, seed=seed))
    report = pretrained_report(list(results.values()))
    intervals = report.intervals()
    return Report(
        benchmark=BENCHMARK if options.recipe.partner.tokenizer == "bpe" else f"{BENCHMARK}-bytes",
        settings=_settings(options, card),
        machine=describe_machine(),
        tables=(report.table(intervals), report.costs(RUN_NAMES)),
        targets=pretrained_targets(report),
        raw={
            "options": {**asdict(options), "anchor": card.name, "text": options.text.name},
            "anchor": card.model_hash,
            "known": known.fingerprint(),
            "corpus": corpus,
            "wall_s": time.perf_counter() - started,
            **report.raw(options.seeds, intervals),
        },
    )


def _anchor_card(options: PretrainedOptions) -> ShardCard:
    card = load_backend(options.anchor).card
    longest = max(options.recipe.window, options.recipe.training.window)
    if card.context_length < longest:
        raise ContextLengthError(
            f"{options.anchor}: got a context of {card.context_length} tokens, expected at least {longest}, the "
            "longest window"
        )
    num_points = len(options.recipe.braid.layers)
    if card.num_layers <= num_points:
        raise UnsupportedModelError(
            f"{options.anchor}: got {card.num_layers} layers, expected at least {num_points + 1} for {num_points} "
            "fusion points between them"
        )
    return card


def _run_seed(pool: Pool, spec: PretrainedSpec) -> dict[str, ContestResult]:
    recipe = spec.recipe
    spec = replace(
        spec,
        recipe=replace(
            recipe,
            partner=replace(recipe.partner, seed=spec.seed),
            texts=replace(recipe.texts, seed=spec.seed),
        ),
    )
    # The partner depends neither on the anchor nor on what the contestants do: another such recipe finds it trained.
    for_partner = replace(
        spec,
        recipe=PretrainedRecipe(
            spec.recipe.partner,
            replace(PretrainedRecipe().texts, kept_percent=recipe.texts.kept_percent),
            corpus_share=recipe.corpus_share,
        ),
        anchor="",
        known="",
    )

    def run(spec: PretrainedSpec, whos: Sequence[str]) -> dict[str, ContestResult]:
        return dict(zip(whos, pool.run([replace(spec, who=who) for who in whos]), strict=True))

    results = run(for_partner, [PARTNER]) | run(spec, [UNTRAINED])
    alone = results[UNTRAINED].figures
    best = min(SINGLES, key=lambda row: alone[row][VALIDATION][MIX])
    return results | run(replace(spec, best=best), TRAINED)


def _describe(spec: PretrainedSpec) -> str:
    return f"seed {spec.seed}: {spec.who}"


def _settings(options: PretrainedOptions, anchor: ShardCard) -> dict[str, Any]:
    recipe = options.recipe
    partner, training = recipe.partner, recipe.training
    return {
        "seeds": ", ".join(map(str, options.seeds)),
        "anchor": f"{anchor.name}, {anchor.num_layers} layers of width {anchor.width}, {anchor.vocab_size} tokens",
        "text": options.text.name,
        "partner": f"{partner.num_layers} layers of width {partner.width}, {partner.vocab_size} tokens, "
        f"{partner.num_steps} steps of {partner.step_tokens}",
        "contestants": f"{training.num_steps} steps of {training.windows_per_step} windows of {training.window}",
        "points": recipe.braid.describe(),
    }
