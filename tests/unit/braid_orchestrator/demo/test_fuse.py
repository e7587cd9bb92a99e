"""The demo's fusion training: services of its own that end with it, and a Ctrl-C that leaves no version behind."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from braids import braid_config
from models import save_tiny_model
from training_shards import served_here

from braid_fusion.training import Progress
from braid_fusion.weights import read_card
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.demo import fuse
from braid_orchestrator.demo.corpus import Corpus, Document
from braid_orchestrator.demo.recipe import QUICK
from braid_orchestrator.demo.shards import shard_services
from braid_rpc import ShardClient
from braid_rpc.errors import BraidError
from braid_services.shard.config import ShardConfig

RECIPE = replace(QUICK, fusion=replace(QUICK.fusion, num_steps=4, num_chars=4000, window=16, step_tokens=64))
NAMES = ("left", "right")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        save_tiny_model(folder / name, seed)
    return folder


def config_in(folder: Path) -> BraidConfig:
    config = braid_config(names=NAMES)
    return replace(config, shards=tuple(ShardConfig(name, str(folder / name), threads=0) for name in NAMES))


def corpus() -> Corpus:
    def documents(split: str) -> tuple[Document, ...]:
        return tuple(
            Document(f"{split}-{index}", kind, f"the {kind} number {index} of the theatre\n" * 20)
            for index in range(12)
            for kind in ("code", "prose")
        )

    return Corpus(documents("specialist"), documents("fusion"), documents("held_out"))


def test_services_are_up_within_and_gone_afterwards(folder: Path, tmp_path: Path, monkeypatch) -> None:
    # Of a braid that is served: these shards must not be found by it.
    monkeypatch.setenv("BRAID_STATE__URL", "redis://127.0.0.1:1")
    with shard_services(config_in(folder).shards, tmp_path / "log") as targets:
        for name, target in targets.items():
            with ShardClient(target) as client:
                assert client.describe().name == name
        sockets = [Path(target.removeprefix("unix:")) for target in targets.values()]
        assert all(path.is_socket() for path in sockets)
    assert not any(path.parent.exists() for path in sockets)


def test_a_service_that_does_not_start_says_where_it_says_why(folder: Path, tmp_path: Path) -> None:
    missing = ShardConfig("lost", str(folder / "lost"))
    with (
        pytest.raises(BraidError, match=r"shard 'lost' ended with exit code \d .*; .*log says why"),
        shard_services([missing], tmp_path / "log"),
    ):
        raise AssertionError("it was ready")
    assert "lost" in (tmp_path / "log").read_text()


def test_the_version_is_what_training_against_the_services_gave(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(fuse, "shard_services", served_here)
    run, versions = tmp_path / "training", tmp_path / "fusion"
    record = fuse.train_fusion(config_in(folder), corpus(), RECIPE, run, versions)
    card = read_card(versions / "v1")
    assert card.raw["training"]["steps"] == record.steps == 4
    assert (run / "log.jsonl").is_file() and not (run / "weights" / "v1").exists()
    braid = fuse.load_braid(config_in(folder), versions)
    assert braid.stack.plan.hash() == card.plan.hash()
    # Anew, whatever was there.
    assert fuse.train_fusion(config_in(folder), corpus(), RECIPE, run, tmp_path / "again").steps == 4
    assert read_card(tmp_path / "again" / "v1").weights_sha256 == card.weights_sha256


def test_ctrl_c_ends_it_without_a_version(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fuse, "shard_services", served_here)

    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fuse.train_fusion(
            config_in(folder), corpus(), RECIPE, tmp_path / "run", tmp_path / "fusion", interrupt
        )
    assert not (tmp_path / "fusion").exists()
