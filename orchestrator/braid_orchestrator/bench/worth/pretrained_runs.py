"""One run of the experiment with a pretrained model: its partner trained, what needs no training, or a contestant.

Runs are done by a `PretrainedRunner` in a process of its own, on one core. Everything that decides a run is in its
spec.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from braid_orchestrator.bench.worth.contest import (
    LORA,
    BraidRecipe,
    Contest,
    StackContestant,
    TrainingRecipe,
)
from braid_orchestrator.bench.worth.contest_result import ContestResult, result_of
from braid_orchestrator.bench.worth.measuring import MeasuredTexts, Sums
from braid_orchestrator.bench.worth.models import check_trained
from braid_orchestrator.bench.worth.pretrained_contestants import (
    PARTNER,
    SINGLES,
    STACKS,
    AnchorAndPartner,
    PartnerRecipe,
    train_partner,
)
from braid_orchestrator.bench.worth.pretrained_texts import (
    partner_texts,
    pretrained_texts,
    read_known_text,
)
from braid_orchestrator.bench.worth.texts import ContestTexts, TextAmounts
from braid_orchestrator.demo.corpus import Corpus, read_corpus
from braid_orchestrator.demo.recipe import digest
from braid_orchestrator.evaluation import LaneReader
from braid_orchestrator.training.data import Document, MemorySource, encode_source

UNTRAINED, STRETCHES = "untrained", "posterior mix by stretches"


@dataclass(frozen=True, slots=True)
class PretrainedRecipe:
    """All settings of the experiment but its seeds and what it is given. ``window`` in tokens, for measuring;
    ``corpus_share`` of the installation's files are read."""

    partner: PartnerRecipe = field(default_factory=PartnerRecipe)
    texts: TextAmounts = field(
        default_factory=lambda: TextAmounts(
            mixed_chars=340_000,
            pure_chars=50_000,
            kept_percent=15,
            validation_chars=12_000,
            test_chars=40_000,
        )
    )
    training: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(num_steps=250))
    braid: BraidRecipe = field(default_factory=lambda: BraidRecipe(layers=(0.25, 0.5, 0.75)))
    window: int = 512
    corpus_share: float = 1.0


@dataclass(frozen=True, slots=True)
class PretrainedSpec:
    """One run. ``who``: `PARTNER`, `UNTRAINED`, or one of `TRAINED`. ``best``: the better single, for LoRA.
    ``anchor`` is the hash of its weights; ``known`` and ``corpus`` are the texts' fingerprints."""

    who: str
    seed: int
    recipe: PretrainedRecipe
    anchor: str
    known: str
    corpus: str
    best: str = ""


class PretrainedRunner:
    """Keeps the partners that it trains in folders of ``work``, one per seed.

    Args:
        anchor: the pretrained model's folder.
        known: a file or folder of text that it knows.
    """

    def __init__(self, work: str, anchor: str, known: str) -> None:
        torch.set_num_threads(1)
        disable_progress_bar()  # transformers would draw one per model into the benchmark's own
        self._work, self._anchor = Path(work), Path(anchor)
        self._known = read_known_text(Path(known))

    def run(self, spec: PretrainedSpec) -> ContestResult:
        """Train, evaluate. Raises: BraidError, TrainingError, ValueError for a kind of text that is missing."""
        started = time.perf_counter()
        torch.manual_seed(spec.seed)  # the same whatever the process has run before
        recipe = spec.recipe
        folder = self._work / _models_folder(spec)
        corpus = _corpus(recipe.corpus_share)
        if spec.who == PARTNER:
            folder.mkdir(parents=True, exist_ok=True)
            record = train_partner(recipe.partner, partner_texts(corpus, recipe.texts), folder)
            return result_of({}, record["num_parameters"], {"final_loss": record["final_loss"]}, started)
        check_trained(folder / PARTNER)
        texts = pretrained_texts(self._known, corpus, recipe.texts)
        pair = AnchorAndPartner(self._anchor, folder, recipe.partner, spec.best, spec.seed)
        with ExitStack() as closing:
            sums, size, notes = _contest(spec, texts, pair, closing)
        return result_of(sums, size, notes, started)


def _models_folder(spec: PretrainedSpec) -> str:
    """Another recipe or corpus has other partners."""
    recipe = spec.recipe
    made_by = [asdict(recipe.partner), recipe.texts.kept_percent, recipe.corpus_share, spec.corpus]
    return f"seed-{spec.seed}-{digest(made_by)}"


@lru_cache(maxsize=1)
def _corpus(share: float) -> Corpus:
    return read_corpus(share=share)


def _contest(
    spec: PretrainedSpec, texts: ContestTexts, pair: AnchorAndPartner, closing: ExitStack
) -> tuple[dict[str, Sums], int, dict[str, Any]]:
    """What needs no training, or one of `TRAINED`."""
    recipe = spec.recipe
    backends = pair.backends("other")
    readers = [LaneReader(backend) for backend in backends]
    train = MemorySource("training text", _documents("training text", texts.train))
    tokens = [
        encode_source(train, reader.encoder, max_example_tokens=recipe.window).token_ids_N
        for reader in readers
    ]
    measured = MeasuredTexts(
        readers,
        {name: _documents(name, parts) for name, parts in texts.validation.items()},
        {name: _documents(name, parts) for name, parts in texts.test.items()},
        recipe.window,
    )
    contest = Contest(pair, recipe.training, recipe.braid, tokens[0], spec.seed, closing)
    if spec.who == UNTRAINED:
        outputs = contest.build(StackContestant(has_points=False, readout="mixture"), backends)
        sums, forgetting = measured.measure_mixes(contest.shards(backends), outputs)
        sums[STRETCHES], of_stretches = measured.measure_stretches(contest.shards(backends))
        return sums, 0, {"forgetting": forgetting, "forgetting by stretches": of_stretches}
    lane = SINGLES.index(pair.best_single) if spec.who == LORA else 0
    evaluate = partial(measured.validate, lane=lane)
    if spec.who == LORA:
        trained = contest.train_lora(evaluate, tokens[lane])
    else:
        trained = contest.train_stack(STACKS[spec.who], evaluate)
    sums = {spec.who: measured.measure(spec.who, trained.scorer, lane)}
    return sums, trained.num_parameters, trained.notes()


def _documents(name: str, texts: list[str]) -> list[Document]:
    return [Document(f"{name}, {number}", text) for number, text in enumerate(texts)]
