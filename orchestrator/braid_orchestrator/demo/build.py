"""Builds the demo: tokenizer, specialists, fusion modules, comparison. Once; then it is all there.

The folder holds one model folder per shard, ``fusion/`` with a version of weights, and ``manifest.json``, which
is written last in each stage and says what the folder was made by. ``training/`` has the texts, log and plot of the
fusion modules' training. A build that was interrupted leaves no
manifest for its stage and starts that stage again; a changed recipe or plan builds anew.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file
from tokenizers import Tokenizer

from braid_fusion import training
from braid_orchestrator.config.schema import load_braid_config
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.demo.corpus import Corpus, read_corpus
from braid_orchestrator.demo.fuse import WEIGHTS_VERSION, compare_on_held_out, load_braid, train_fusion
from braid_orchestrator.demo.pretrain import PretrainJob
from braid_orchestrator.demo.recipe import DEMOS, DemoRecipe, digest
from braid_orchestrator.demo.specialists import train_specialists
from braid_orchestrator.demo.tokenizer import encode_documents, save_tokenizer, train_tokenizer
from braid_orchestrator.folder_lock import alone_in
from braid_rpc.errors import ConfigError

MANIFEST_FILE, FUSION_FOLDER, TRAINING_FOLDER = "manifest.json", "fusion", "training"
SCRATCH_FOLDER = ".building"
_REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class DemoBuild:
    """What was built. ``bits_per_byte[who][text]``: who is a shard's name, "uniform mix" or "braid", the texts
    are held-out "code", "prose" and "mix". ``seconds`` is per stage; nothing was built now if ``cached``."""

    folder: Path
    bits_per_byte: dict[str, dict[str, float]]
    seconds: dict[str, float]
    cached: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def build_demo(
    folder: Path = Path(".braid/demo"),
    console: Console | None = None,
    quick: bool = False,
    *,
    config: BraidConfig | None = None,
    recipe: DemoRecipe | None = None,
) -> DemoBuild:
    """Make sure that the demo's models and fusion weights are in ``folder``, building what isn't.

    Args:
        console: where progress goes; None: standard error.
        quick: the recipe for tests: seconds, and models to match.
        config: the braid that the fusion modules are for; None: that of ``deploy/braid.yaml``.
        recipe: instead of the one that ``quick`` picks.

    Raises: ConfigError if the braid's shards are not the demo's; ConflictError while another process builds
        there; BraidError if training fails.
    """
    recipe = recipe or (DEMOS["demo"].quick if quick else DEMOS["demo"].full)
    config = config or load_braid_config(_find_config())
    _check_shards(config, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, f"{folder}: another process is building the demo there; wait for it"):
        return _Build(folder, console or Console(stderr=True), config, recipe).run()


class _Build:
    def __init__(self, folder: Path, console: Console, config: BraidConfig, recipe: DemoRecipe) -> None:
        self.folder = folder
        self.console = console
        self.config = config
        self.recipe = recipe
        self.manifest = _read_manifest(folder)
        self.specialists_hash = digest([recipe.specialists_part()])
        self.fusion_hash = digest(
            [
                self.specialists_hash,
                recipe.fusion_part(),
                asdict(config)["points"],
                asdict(config.readout),
                [config.anchor, *(shard.name for shard in config.shards)],
            ]
        )

    def run(self) -> DemoBuild:
        started = self.manifest
        needs_specialists = started.get("specialists_hash") != self.specialists_hash or not all(
            (self.folder / specialist.name / "config.json").is_file()
            for specialist in self.recipe.specialists
        )
        needs_fusion = (
            needs_specialists
            or started.get("fusion_hash") != self.fusion_hash
            or not (self.folder / FUSION_FOLDER / WEIGHTS_VERSION / "card.json").is_file()
        )
        if needs_fusion:
            self._build(needs_specialists)
        return DemoBuild(
            self.folder, self.manifest["bits_per_byte"], self.manifest["seconds"], cached=not needs_fusion
        )

    def _build(self, needs_specialists: bool) -> None:
        with _progress(self.console) as progress:
            show = _Stages(progress)
            corpus = self._read_corpus(show)
            # Specialists of another Python have read other files, maybe some that are held out in this one.
            if needs_specialists or self.manifest.get("corpus") != corpus.fingerprint():
                self.manifest = {"corpus": corpus.fingerprint(), "seconds": {}}
                self._forget_manifest()
                self._train_specialists(corpus, show)
                self.manifest["specialists_hash"] = self.specialists_hash
                self._write_manifest()
            self.manifest.pop("fusion_hash", None)
            self._write_manifest()
            self._train_fusion(corpus, show)
            self.manifest["seconds"].update(show.seconds)
            self.manifest["fusion_hash"] = self.fusion_hash
            self.manifest["recipe"] = self.recipe.to_dict()
            self._write_manifest()

    def _read_corpus(self, show: _Stages) -> Corpus:
        with show.stage("corpus", "reading the text of this Python installation"):
            return read_corpus(share=self.recipe.corpus_share)

    def _train_specialists(self, corpus: Corpus, show: _Stages) -> None:
        recipe = self.recipe
        scratch = self.folder / SCRATCH_FOLDER
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        sizes = ", ".join(f"{one.vocab_size}" for one in recipe.tokenizers)
        with show.stage("tokenizer", f"tokenizer ({sizes} tokens)"):
            texts = {
                s.name: [text for kind in s.reads for text in corpus.texts("specialist", kind)]
                for s in recipe.specialists
            }
            tokenizers = self._train_tokenizers(corpus, scratch)
            tokens = {
                s.name: torch.tensor(
                    encode_documents(tokenizers[s.tokenizer], texts[s.name]), dtype=torch.int32
                )
                for s in recipe.specialists
            }
            save_file(tokens, scratch / "tokens.safetensors")
        bytes_per_token: dict[str, float] = {
            name: sum(len(text.encode()) for text in texts[name]) / tokens[name].numel() for name in texts
        }
        bars: dict[str, TaskID] = {
            s.name: show.bar(f"training {s.name!r}: {s.num_layers} layers, {s.width} wide")
            for s in recipe.specialists
        }
        jobs = [
            PretrainJob(
                specialist,
                tokenizers[specialist.tokenizer].get_vocab_size(),
                tokens=str(scratch / "tokens.safetensors"),
                tokenizer=str(scratch / specialist.tokenizer),
                folder=str(self.folder / specialist.name),
            )
            for specialist in recipe.specialists
        ]

        def note(name: str, progress: training.Progress) -> None:
            show.update(
                bars[name],
                progress.fraction,
                f"{progress.loss / math.log(2) / bytes_per_token[name]:.2f} bits per byte",
            )

        started = time.monotonic()
        train_specialists(jobs, scratch, note)
        show.seconds["specialists"] = time.monotonic() - started
        self.manifest["seconds"].update(show.seconds)
        shutil.rmtree(scratch)

    def _train_tokenizers(self, corpus: Corpus, scratch: Path) -> dict[str, Tokenizer]:
        trained = {}
        for recipe in self.recipe.tokenizers:
            readers = [s for s in self.recipe.specialists if s.tokenizer == recipe.name]
            kinds = list(dict.fromkeys(kind for reader in readers for kind in reader.reads))
            texts = [corpus.texts("specialist", kind) for kind in kinds]
            trained[recipe.name] = train_tokenizer(recipe, texts, self.recipe.tokenizer_chars)
            longest = max(reader.context_length for reader in readers)
            save_tokenizer(trained[recipe.name], scratch / recipe.name, longest)
        return trained

    def _train_fusion(self, corpus: Corpus, show: _Stages) -> None:
        with _one_torch_thread():
            bar = show.bar("training the fusion modules against the models' services")
            started = time.monotonic()
            versions = self.folder / FUSION_FOLDER
            shutil.rmtree(versions, ignore_errors=True)
            config = _with_models_in(self.folder, self.config)
            record = train_fusion(
                config,
                corpus,
                self.recipe,
                self.folder / TRAINING_FOLDER,
                versions,
                lambda p: show.update(bar, p.fraction, f"loss {p.loss:.3f}"),
            )
            show.seconds["fusion"] = time.monotonic() - started
            self.manifest["fusion_training"] = json.loads(json.dumps(record.to_dict()))
            bar = show.bar("comparing on held-out text")
            started = time.monotonic()
            braid = load_braid(config, versions)
            self.manifest["bits_per_byte"] = compare_on_held_out(
                braid, corpus, self.recipe, lambda fraction: show.update(bar, fraction, "")
            )
            show.seconds["comparison"] = time.monotonic() - started

    def _write_manifest(self) -> None:
        path = self.folder / MANIFEST_FILE
        fresh = path.with_suffix(".json.new")
        fresh.write_text(json.dumps(self.manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(fresh, path)

    def _forget_manifest(self) -> None:
        (self.folder / MANIFEST_FILE).unlink(missing_ok=True)


class _Stages:
    """Progress bars, and how long each stage took."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """A stage that can't say how far it is."""
        task = self._progress.add_task(description, total=None, figure="")
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        self._progress.update(task, total=1.0, completed=1.0)

    def bar(self, description: str) -> TaskID:
        """A stage that can."""
        return self._progress.add_task(description, total=1.0, figure="")

    def update(self, task: TaskID, fraction: float, figure: str) -> None:
        """How far it is."""
        self._progress.update(task, completed=fraction, figure=figure)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figure]}"),
        console=console,
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _with_models_in(folder: Path, config: BraidConfig) -> BraidConfig:
    shards = tuple(replace(shard, model=str(folder / shard.name)) for shard in config.shards)
    return replace(config, shards=shards)


def _find_config() -> Path:
    for root in (Path.cwd(), _REPOSITORY):
        path = root / "deploy" / "braid.yaml"
        if path.is_file():
            return path
    raise ConfigError("deploy/braid.yaml: not found here, expected the repository's root as working folder")


def _check_shards(config: BraidConfig, recipe: DemoRecipe) -> None:
    expected = sorted(specialist.name for specialist in recipe.specialists)
    found = sorted(shard.name for shard in config.shards)
    if found != expected:
        raise ConfigError(
            f"shards: got {', '.join(found)}, expected those that the demo trains: {', '.join(expected)}"
        )
