"""One run of the experiment with two specialists: a model pretrained, what needs no training, or a contestant.

Runs are done by a `SpecialistRunner` in a process of its own, on one core. Everything that decides a run is in its
spec.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from braid_orchestrator.bench.worth.contest import BraidRecipe, Contest, StackContestant, TrainingRecipe
from braid_orchestrator.bench.worth.contest_result import ContestResult, result_of
from braid_orchestrator.bench.worth.llamas import load_llama_tokenizer, train_llama_tokenizer
from braid_orchestrator.bench.worth.measuring import MeasuredTexts, Sums
from braid_orchestrator.bench.worth.models import check_trained, model_scorer
from braid_orchestrator.bench.worth.specialist_contestants import Specialists, train
from braid_orchestrator.bench.worth.specialist_parents import (
    KINDS,
    START,
    ParentRecipe,
    soup,
    train_parent,
)
from braid_orchestrator.bench.worth.specialist_texts import TextRecipe, specialist_texts, texts_of_specialist
from braid_orchestrator.demo.corpus import Corpus, read_corpus
from braid_orchestrator.demo.recipe import digest
from braid_orchestrator.demo.tokenizer import encode_documents
from braid_orchestrator.evaluation import LaneReader
from braid_orchestrator.training.data import Document

SOUP = "weight soup"
UNTRAINED = "untrained"


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


class SpecialistRunner:
    """Keeps the models that it trains in folders of ``work``, one per seed."""

    def __init__(self, work: str) -> None:
        torch.set_num_threads(1)
        disable_progress_bar()  # transformers would draw one per model into the benchmark's own
        self._work = Path(work)

    def run(self, spec: SpecialistSpec) -> ContestResult:
        """Train, evaluate. Raises: BraidError, TrainingError, ValueError for a kind of text that is missing."""
        started = time.perf_counter()
        folder = self._work / models_folder(spec)
        corpus = _corpus(spec.recipe.corpus_share)
        if spec.who in (START, *KINDS):
            record = _pretrain(spec, folder, corpus)
            return result_of({}, record["num_parameters"], {"final_loss": record["final_loss"]}, started)
        for kind in KINDS:
            check_trained(folder / kind)
        with ExitStack() as closing:
            sums, size, notes = _contest(spec, corpus, folder, closing)
        return result_of(sums, size, notes, started)


def models_folder(spec: SpecialistSpec) -> str:
    """The name of the folder of a run's specialists: another recipe or corpus has others."""
    recipe = spec.recipe
    made_by = [asdict(recipe.parents), recipe.texts.kept_percent, recipe.corpus_share, spec.corpus]
    return f"seed-{spec.seed}-{digest(made_by)}"


@lru_cache(maxsize=1)
def _corpus(share: float) -> Corpus:
    return read_corpus(share=share)


def _pretrain(spec: SpecialistSpec, folder: Path, corpus: Corpus) -> dict[str, Any]:
    """The start, or a specialist from it."""
    parents = spec.recipe.parents
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        kind: texts_of_specialist(corpus, kind, spec.recipe.texts)
        for kind in KINDS
        if spec.who in (START, kind)
    }
    if spec.who == START:
        tokenizer = train_llama_tokenizer(list(texts.values()), parents, folder)
    else:
        tokenizer = load_llama_tokenizer(folder)
    read = [text for of_kind in texts.values() for text in of_kind]
    return train_parent(spec.who, parents, tokenizer, read, folder)


def _contest(
    spec: SpecialistSpec, corpus: Corpus, folder: Path, closing: ExitStack
) -> tuple[dict[str, Sums], int, dict[str, Any]]:
    """What needs no training, or one of `TRAINED`."""
    recipe = spec.recipe
    texts = specialist_texts(corpus, recipe.texts)
    validation, test = (
        {name: [Document(name, "\n\n".join(parts))] for name, parts in side.items()}
        for side in (texts.validation, texts.test)
    )
    pair = Specialists(folder, recipe.parents, spec.best, spec.seed)
    backends = pair.backends("other")
    measured = MeasuredTexts([LaneReader(backends[0])], validation, test, recipe.window)
    tokens = torch.tensor(encode_documents(load_llama_tokenizer(folder), texts.train))
    contest = Contest(pair, recipe.training, recipe.braid, tokens, spec.seed, closing)
    if spec.who == UNTRAINED:
        outputs = contest.build(StackContestant(has_points=False, readout="mixture"), backends)
        sums, forgetting = measured.measure_mixes(contest.shards(backends), outputs)
        sums[SOUP] = measured.measure(SOUP, model_scorer(soup(folder)))
        return sums, 0, {"forgetting": forgetting}
    trained = train(contest, spec.who, measured.validate)
    return {spec.who: measured.measure(spec.who, trained.scorer)}, trained.num_parameters, trained.notes()
