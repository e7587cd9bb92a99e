"""One run of the experiment with two specialists: a model pretrained, what needs no training, or a contestant.

Runs are done by a `SpecialistRunner` in a process of its own, on one core. Everything that decides a run is in its
spec.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from braid_orchestrator.bench.worth.ensembles import oracle, posterior_mix, uniform_mix
from braid_orchestrator.bench.worth.specialist_contestants import (
    BraidRecipe,
    Contest,
    TrainingRecipe,
    load_backend,
    load_model,
    model_scorer,
    soup,
)
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
from braid_orchestrator.demo.tokenizer import encode_documents
from braid_orchestrator.evaluation import EncodedText, Scorer, bits_per_byte, encode_windows, target_logprobs
from braid_rpc.errors import NotFoundError

UNIFORM, POSTERIOR, SOUP, ORACLE = (
    "uniform mix",
    "posterior weights",
    "weight soup",
    "per-token oracle (bound)",
)
UNTRAINED = "untrained"
FORGETTINGS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
VALIDATION, TEST = "validation", "test"

Figures = dict[str, dict[str, float]]  # by side and text


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
    """``figures[row][side][text]`` in bits per byte; a training run without rows has none. ``peak_mib`` is the
    process's, all its runs so far together."""

    figures: dict[str, Figures]
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
        """Train, evaluate. Raises: BraidError, TrainingError, ValueError for texts that are too short."""
        started = time.perf_counter()
        folder = self._work / models_folder(spec)
        recipe = spec.recipe
        corpus = _corpus(recipe.corpus_share)
        if spec.who in (START, *KINDS):
            figures, size, notes = self._pretrain(spec, folder, corpus)
        elif spec.who == UNTRAINED:
            figures, size, notes = _measure_untrained(_Texts(folder, recipe, spec.seed, corpus), folder)
        else:
            texts = _Texts(folder, recipe, spec.seed, corpus)
            contest = Contest(
                folder, recipe.parents, recipe.training, recipe.braid, texts.tokens, spec.best, spec.seed
            )
            trained = contest.train(spec.who, texts.validate)
            figures = {spec.who: texts.measure(trained.scorer)}
            size = trained.num_parameters
            notes = {
                "best_step": trained.record.best_step,
                "evaluations": [[one.step, one.values["loss"]] for one in trained.record.evaluations],
            }
        return SpecialistResult(figures, size, time.perf_counter() - started, peak_mib(), notes)

    def _pretrain(
        self, spec: SpecialistSpec, folder: Path, corpus: Corpus
    ) -> tuple[dict[str, Figures], int, dict[str, Any]]:
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


class _Texts:
    """A seed's texts in tokens: what trains, and windows to measure on."""

    def __init__(self, folder: Path, recipe: SpecialistRecipe, seed: int, corpus: Corpus) -> None:
        for kind in KINDS:
            if not (folder / kind / "config.json").is_file():
                raise NotFoundError(
                    f"{folder / kind}: got no model, expected the one that a finished run has left there; "
                    "remove the file of finished runs to train it again"
                )
        reader = load_backend(folder, KINDS[0])
        texts = specialist_texts(corpus, recipe.texts)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        self.tokens = torch.tensor(encode_documents(tokenizer, texts.train))
        self.sides: dict[str, dict[str, EncodedText]] = {
            side: {name: encode_windows(reader, parts, recipe.window) for name, parts in by_name.items()}
            for side, by_name in ((VALIDATION, texts.validation), (TEST, texts.test))
        }

    def measure(self, scorer: Scorer) -> Figures:
        """Bits per byte of every text on both sides."""
        return {side: self._bits(scorer, side) for side in self.sides}

    def validate(self, scorer: Scorer) -> dict[str, float]:
        """What training chooses its best weights by: the mean over the validation texts."""
        return {"loss": fmean(self._bits(scorer, VALIDATION).values())}

    def _bits(self, scorer: Scorer, side: str) -> dict[str, float]:
        return {
            name: bits_per_byte(target_logprobs(scorer, text), text.num_bytes)
            for name, text in self.sides[side].items()
        }


def _measure_untrained(texts: _Texts, folder: Path) -> tuple[dict[str, Figures], int, dict[str, Any]]:
    """The singles, and what their predictions or their weights give together."""
    scorers = [model_scorer(load_model(folder, kind)) for kind in KINDS]
    logprobs = {
        side: {name: _by_model(scorers, text) for name, text in by_name.items()}
        for side, by_name in texts.sides.items()
    }

    def bits(side: str, name: str, logprobs_NL: Tensor) -> float:
        return bits_per_byte(logprobs_NL.flatten(), texts.sides[side][name].num_bytes)

    def mean_on_validation(forgetting: float) -> float:
        return fmean(
            bits(VALIDATION, name, posterior_mix(own, forgetting))
            for name, own in logprobs[VALIDATION].items()
        )

    forgetting = min(FORGETTINGS, key=mean_on_validation)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        KINDS[0]: lambda own: own[..., 0],
        KINDS[1]: lambda own: own[..., 1],
        UNIFORM: uniform_mix,
        POSTERIOR: lambda own: posterior_mix(own, forgetting),
        ORACLE: oracle,
    }
    figures = {
        row: {
            side: {name: bits(side, name, way(own)) for name, own in by_name.items()}
            for side, by_name in logprobs.items()
        }
        for row, way in ways.items()
    }
    figures[SOUP] = texts.measure(model_scorer(soup(folder)))
    return figures, 0, {"forgetting": forgetting}


def _by_model(scorers: list[Scorer], text: EncodedText) -> Tensor:
    """(N, L, S)."""
    num_windows = text.windows.shape[0]
    own = [target_logprobs(scorer, text).view(num_windows, -1) for scorer in scorers]
    return torch.stack(own, dim=-1)


def peak_mib() -> float:
    """The most memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
