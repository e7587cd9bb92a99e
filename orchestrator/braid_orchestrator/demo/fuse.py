"""Trains the demo braid's fusion modules and readout on mixed text, as `braid train` does, and compares the result on
held-out text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from braid_fusion.stack import FusionStack
from braid_fusion.training import Progress, TrainingRecord
from braid_fusion.weights import load_weights
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.demo.corpus import Corpus, mixed_texts
from braid_orchestrator.demo.recipe import DemoRecipe
from braid_orchestrator.demo.shards import shard_services
from braid_orchestrator.evaluation import BRAID, UNIFORM, Cut, LaneReaders, Lineup, measure_text
from braid_orchestrator.training.data import Document
from braid_orchestrator.training.job import TrainingJob, do_job
from braid_orchestrator.training.local import LocalTrainingShard
from braid_orchestrator.training.reaching import Way
from braid_orchestrator.training.run import RunOptions
from braid_services.shard.backend import ShardBackend

WEIGHTS_VERSION = "v1"
TEXTS_FILE, SHARDS_LOG = "texts.jsonl", "shards.log"
HELD_OUT_SEED = 7


def train_fusion(
    config: BraidConfig,
    corpus: Corpus,
    recipe: DemoRecipe,
    run: Path,
    versions: Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingRecord:
    """Train on the corpus's fusion split, against the configuration's shards as services of their own, and put the
    version into ``versions``. ``run`` is the training's folder, made anew.

    The specialists have not read that split: on what they have, they are surer than they should be.

    Raises: BraidError and TrainingError of each kind; KeyboardInterrupt where a Ctrl-C ended the training.
    """
    fusion = recipe.fusion
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    texts = mixed_texts(
        corpus.texts("fusion", "code"),
        corpus.texts("fusion", "prose"),
        num_chars=fusion.num_chars,
        seed=fusion.seed,
    )
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (run / TEXTS_FILE).write_text(lines, encoding="utf-8")
    with shard_services(config.shards, run / SHARDS_LOG) as targets:
        job = TrainingJob(
            config,
            Way(targets),
            (str(run / TEXTS_FILE),),
            run,
            held_out_share=0.0,
            options=RunOptions(
                steps=fusion.num_steps,
                max_seconds=fusion.max_seconds,
                window=fusion.window,
                batch_size=max(1, fusion.step_tokens // fusion.window),
                learning_rate=fusion.learning_rate,
                seed=fusion.seed,
            ),
            version=WEIGHTS_VERSION,
        )
        outcome = do_job(job, on_progress=on_progress, progress_bar=False)
    if outcome.weights is None:
        raise KeyboardInterrupt
    versions.mkdir(parents=True, exist_ok=True)
    outcome.weights.rename(versions / WEIGHTS_VERSION)
    return outcome.record


@dataclass(frozen=True, slots=True)
class DemoBraid:
    """The demo's shards and fusion modules, in memory."""

    backends: tuple[ShardBackend, ...]
    stack: FusionStack


def load_braid(config: BraidConfig, versions: Path) -> DemoBraid:
    """The shards of a configuration, and the fusion modules as trained.

    Raises: ConfigError, UnknownModelError and what else loading raises.
    """
    backends = tuple(ShardBackend.load(replace(shard, threads=0)) for shard in config.shards)
    stack = FusionStack(resolve_plan(config, [backend.card for backend in backends]))
    load_weights(stack, versions / WEIGHTS_VERSION)
    return DemoBraid(backends, stack.eval())


def held_out_texts(corpus: Corpus, recipe: DemoRecipe) -> dict[str, list[str]]:
    """Held-out code, prose, and a mix of both, an even sample of the files."""
    code, prose = corpus.texts("held_out", "code"), corpus.texts("held_out", "prose")
    num_chars = recipe.evaluation_chars
    return {
        "code": even_sample(code, num_chars),
        "prose": even_sample(prose, num_chars),
        "mix": mixed_texts(code, prose, num_chars=num_chars, seed=HELD_OUT_SEED),
    }


def compare_on_held_out(
    braid: DemoBraid,
    corpus: Corpus,
    recipe: DemoRecipe,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Bits per byte of each shard alone, their average and the braid: ``result[who][text]``."""
    texts = held_out_texts(corpus, recipe)
    figures: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        shards = [LocalTrainingShard(backend) for backend in braid.backends]
        for shard in shards:
            stack.callback(shard.shutdown)
        readers = LaneReaders(shards, braid.stack.plan)
        lineup = Lineup(shards, braid.stack, accuracy=False)
        for number, (name, parts) in enumerate(texts.items()):
            text = readers.read(name, [Document(name, "\n\n".join(parts))], recipe.evaluation_window)

            def on_windows(done: int, total: int, number: int = number) -> None:
                if on_progress is not None:
                    on_progress((number + done / total) / len(texts))

            sums = measure_text(lineup, text, Cut(recipe.evaluation_window), on_windows).sums
            for who in sums:
                if who.kind == "shard" or who in (UNIFORM, BRAID):
                    figures.setdefault(who.name, {})[name] = sums[who].bits_per_byte
    return figures


def even_sample(texts: Sequence[str], num_chars: int) -> list[str]:
    """The beginning of every text, all of about the same length, together ``num_chars`` if there is as much."""
    sample: list[str] = []
    left = num_chars
    for number, text in enumerate(sorted(texts, key=len)):  # what short texts leave goes to longer ones
        part = text[: left // (len(texts) - number)]
        sample.append(part)
        left -= len(part)
    return sample
