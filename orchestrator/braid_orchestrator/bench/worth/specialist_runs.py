"""One run of the experiment with two specialists: a model pretrained, what needs no training, or a contestant.

Runs are done by a `SpecialistRunner` in a process of its own, on one core. Everything that decides a run is in its
spec.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers.utils.logging import disable_progress_bar

from braid_orchestrator.bench.machine import peak_bytes
from braid_orchestrator.bench.worth.specialist_contestants import BraidRecipe, Contest, TrainingRecipe
from braid_orchestrator.bench.worth.specialist_measuring import (
    TEST,
    Figures,
    MeasuredTexts,
    Sums,
    figures_of,
)
from braid_orchestrator.bench.worth.specialist_models import load_backend, model_scorer, soup
from braid_orchestrator.bench.worth.specialist_parents import (
    KINDS,
    START,
    ParentRecipe,
    train_parent,
    train_parent_tokenizer,
)
from braid_orchestrator.bench.worth.specialist_texts import TextRecipe, specialist_texts, texts_of_specialist
from braid_orchestrator.demo.corpus import Corpus, read_corpus
from braid_orchestrator.demo.recipe import digest
from braid_orchestrator.training.local import LocalTrainingShard

SOUP = "weight soup"
UNTRAINED = "untrained"

Windows = dict[str, dict[str, list[float]]]  # of the test texts: bits, bytes and tokens of each window


@dataclass(frozen=True, slots=True)
class SpecialistRecipe:
    """All settings of the experiment but its seeds. ``corpus_share`` of the files are read."""

    parents: ParentRecipe = field(default_factory=ParentRecipe)
    texts: TextRecipe = field(default_factory=TextRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    braid: BraidRecipe = field(default_factory=BraidRecipe)
    window: int = 512
    corpus_share: float = 1.0


@dataclass(frozen=True, slots=True)
class SpecialistSpec:
    """One run. ``who``: `START`, a kind, `UNTRAINED`, or one of `TRAINED`. ``best``: the better specialist's kind,
    for those that build on it. ``corpus`` is its fingerprint: texts differ from one Python to another."""

    who: str
    seed: int
    recipe: SpecialistRecipe
    corpus: str
    best: str = ""


@dataclass(frozen=True, slots=True)
class SpecialistResult:
    """``figures[row][side][text]`` in bits per byte, and ``windows[row][text]`` of the test texts, for intervals; a
    training run without rows has none. ``peak_mib`` is the process's, all its runs so far together."""

    figures: dict[str, Figures]
    windows: dict[str, Windows]
    num_parameters: int
    seconds: float
    peak_mib: float
    notes: Mapping[str, Any] = field(default_factory=dict)


class SpecialistRunner:
    """Keeps the models that it trains in folders of ``work``, one per seed."""

    def __init__(self, work: str) -> None:
        torch.set_num_threads(1)
        disable_progress_bar()  # transformers would draw one per model into the benchmark's own
        self._work = Path(work)

    def run(self, spec: SpecialistSpec) -> SpecialistResult:
        """Train, evaluate. Raises: BraidError, TrainingError, ValueError for a kind of text that is missing."""
        started = time.perf_counter()
        folder = self._work / models_folder(spec)
        recipe = spec.recipe
        corpus = _corpus(recipe.corpus_share)
        if spec.who in (START, *KINDS):
            sums, size, notes = self._pretrain(spec, folder, corpus)
        else:
            texts = MeasuredTexts(folder, specialist_texts(corpus, recipe.texts), recipe.window)
            with ExitStack() as closing:
                if spec.who == UNTRAINED:
                    sums, size, notes = _measure_untrained(texts, folder, closing)
                else:
                    sums, size, notes = _contest(spec, texts, folder, closing)
        return SpecialistResult(
            {row: figures_of(by_side) for row, by_side in sums.items()},
            {row: _windows(by_side) for row, by_side in sums.items()},
            size,
            time.perf_counter() - started,
            peak_bytes() / 2**20,
            notes,
        )

    def _pretrain(
        self, spec: SpecialistSpec, folder: Path, corpus: Corpus
    ) -> tuple[dict[str, Sums], int, dict[str, Any]]:
        parents = spec.recipe.parents
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            kind: texts_of_specialist(corpus, kind, spec.recipe.texts)
            for kind in KINDS
            if spec.who in (START, kind)
        }
        if spec.who == START:
            tokenizer = train_parent_tokenizer(list(texts.values()), parents, folder)
        else:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        read = [text for of_kind in texts.values() for text in of_kind]
        record = train_parent(spec.who, parents, tokenizer, read, folder)
        return {}, record["num_parameters"], {"final_loss": record["final_loss"]}


def models_folder(spec: SpecialistSpec) -> str:
    """The name of the folder of a run's specialists: another recipe or corpus has others."""
    recipe = spec.recipe
    made_by = [asdict(recipe.parents), recipe.texts.kept_percent, recipe.corpus_share, spec.corpus]
    return f"seed-{spec.seed}-{digest(made_by)}"


@lru_cache(maxsize=1)
def _corpus(share: float) -> Corpus:
    return read_corpus(share=share)


def _measure_untrained(
    texts: MeasuredTexts, folder: Path, closing: ExitStack
) -> tuple[dict[str, Sums], int, dict[str, Any]]:
    """The singles, and what their predictions or their weights give together."""
    shards = [LocalTrainingShard(load_backend(folder, kind)) for kind in KINDS]
    for shard in shards:
        closing.callback(shard.shutdown)
    sums, forgetting = texts.measure_mixes(shards)
    sums[SOUP] = texts.measure(SOUP, model_scorer(soup(folder)))
    return sums, 0, {"forgetting": forgetting}


def _contest(
    spec: SpecialistSpec, texts: MeasuredTexts, folder: Path, closing: ExitStack
) -> tuple[dict[str, Sums], int, dict[str, Any]]:
    """One of `TRAINED`."""
    recipe = spec.recipe
    contest = Contest(
        folder, recipe.parents, recipe.training, recipe.braid, texts.tokens, spec.best, spec.seed, closing
    )
    trained = contest.train(spec.who, texts.validate)
    evaluations = [[one.step, one.values["loss"]] for one in trained.record.evaluations]
    return (
        {spec.who: texts.measure(spec.who, trained.scorer)},
        trained.num_parameters,
        {"best_step": trained.record.best_step, "evaluations": evaluations},
    )


def _windows(sums: Sums) -> Windows:
    return {
        name: {
            "bits": one.bits_U.tolist(),
            "bytes": one.bytes_U.tolist(),
            "tokens": one.tokens_U.tolist(),
        }
        for name, one in sums[TEST].items()
    }
