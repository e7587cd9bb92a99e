"""Trains the demo braid's fusion modules and readout on mixed text, and compares the result on held-out text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from braid_fusion.stack import FusionStack
from braid_fusion.training import Progress, TokenWindows, TrainingRecord
from braid_fusion.weights import save_stack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.demo.corpus import Corpus, mixed_texts
from braid_orchestrator.demo.recipe import DemoRecipe, FusionRecipe
from braid_orchestrator.evaluation import BRAID, UNIFORM, Cut, LaneReaders, Lineup, measure_text
from braid_orchestrator.inprocess.fusion_training import encode_texts, fusion_training_config, train_fusion
from braid_orchestrator.training.data import Document
from braid_orchestrator.training.local import LocalTrainingShard
from braid_services.shard.backend import ShardBackend

WEIGHTS_VERSION = "v1"
HELD_OUT_SEED = 7


@dataclass(frozen=True, slots=True)
class DemoBraid:
    """The demo's shards and fusion modules, in memory."""

    backends: tuple[ShardBackend, ...]
    stack: FusionStack


def load_braid(config: BraidConfig, folder: Path) -> DemoBraid:
    """The shards of a configuration from their folders in ``folder``, and untrained fusion modules.

    Raises: ConfigError, UnknownModelError and what else loading raises.
    """
    backends = tuple(
        ShardBackend.load(replace(shard, model=str(folder / shard.name), threads=0))
        for shard in config.shards
    )
    return DemoBraid(backends, FusionStack(resolve_plan(config, [backend.card for backend in backends])))


def train_braid(
    braid: DemoBraid,
    corpus: Corpus,
    recipe: DemoRecipe,
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingRecord:
    """Train on the corpus's fusion split and save a version in ``folder``.

    The specialists have not read that split: on what they have, they are surer than they should be.
    """
    fusion = recipe.fusion
    texts = mixed_texts(
        corpus.texts("fusion", "code"),
        corpus.texts("fusion", "prose"),
        num_chars=fusion.num_chars,
        seed=fusion.seed,
    )
    tokens = encode_texts(braid.backends[braid.stack.plan.anchor], texts)
    batches = TokenWindows(tokens, fusion.window, max(1, fusion.step_tokens // fusion.window), fusion.seed)
    record = train_fusion(
        braid.backends,
        braid.stack,
        batches,
        fusion_training_config(
            fusion.num_steps, learning_rate=fusion.learning_rate, max_seconds=fusion.max_seconds
        ),
        on_progress=on_progress,
        threads=_threads(fusion),
    )
    save_stack(braid.stack, folder / WEIGHTS_VERSION, json.loads(json.dumps(record.to_dict())))
    return record


def held_out_texts(corpus: Corpus, recipe: DemoRecipe) -> dict[str, list[str]]:
    """Held-out code, prose, and a mix of both, an even sample of the files."""
    code, prose = corpus.texts("held_out", "code"), corpus.texts("held_out", "prose")
    num_chars = recipe.evaluation_chars
    return {
        "code": _even_sample(code, num_chars),
        "prose": _even_sample(prose, num_chars),
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


def _threads(fusion: FusionRecipe) -> int:
    return min(fusion.threads, os.cpu_count() or 1)


def _even_sample(texts: Sequence[str], num_chars: int) -> list[str]:
    """The beginning of every text, all of about the same length, together ``num_chars`` if there is as much."""
    sample: list[str] = []
    left = num_chars
    for number, text in enumerate(sorted(texts, key=len)):  # what short texts leave goes to longer ones
        part = text[: left // (len(texts) - number)]
        sample.append(part)
        left -= len(part)
    return sample
