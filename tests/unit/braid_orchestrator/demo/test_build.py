"""The demo's build, with the quick recipe: models and weights that load, figures that hold, a cache that is right."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from training_shards import served_here

from braid_fusion.weights import read_card
from braid_orchestrator import BraidedLLM
from braid_orchestrator.config.values import BraidConfig, PointConfig, ReadoutConfig
from braid_orchestrator.demo import build, fuse
from braid_orchestrator.demo.build import DemoBuild, build_demo
from braid_orchestrator.demo.corpus import read_corpus
from braid_orchestrator.demo.pretrain import PretrainJob
from braid_orchestrator.demo.recipe import QUICK
from braid_orchestrator.demo.specialists import train_specialists
from braid_orchestrator.demo.table import (
    bits_per_byte_table,
    coloured_tokens,
    gains,
    share_table,
)
from braid_orchestrator.folder_lock import alone_in
from braid_rpc.errors import BraidError, ConfigError, ConflictError
from braid_services.shard.config import ShardConfig

RECIPE = replace(
    QUICK,
    specialists=tuple(replace(specialist, num_steps=25) for specialist in QUICK.specialists),
    fusion=replace(QUICK.fusion, num_steps=10, num_chars=20_000, window=64, step_tokens=256),
    evaluation_chars=2_000,
    evaluation_window=128,
)


def config(folder: Path, **changes: object) -> BraidConfig:
    values: dict[str, object] = {
        "name": "demo",
        "anchor": "code",
        "shards": tuple(ShardConfig(name=n, model=str(folder / n), threads=0) for n in ("code", "prose")),
        "points": (PointConfig(0.5),),
        "readout": ReadoutConfig("gate"),
    }
    return BraidConfig(**{**values, **changes})  # type: ignore[arg-type]


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module", autouse=True)
def corpus_read_once() -> Iterator[None]:
    corpus = read_corpus(share=RECIPE.corpus_share)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "read_corpus", lambda share: corpus)
        yield


@pytest.fixture
def compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is built anew, not of what comes out: no processes and no measurements."""
    monkeypatch.setattr(fuse, "shard_services", served_here)
    monkeypatch.setattr(build, "compare_on_held_out", lambda *_: {"braid": {"mix": 1.0}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def built(folder: Path) -> DemoBuild:
    return build_demo(folder, quiet(), config=config(folder), recipe=RECIPE)


def test_both_specialists_know_their_own_text_better(built: DemoBuild) -> None:
    figures = built.bits_per_byte
    assert figures["code"]["code"] < figures["prose"]["code"]
    assert figures["prose"]["prose"] < figures["code"]["prose"]
    assert figures["braid"]["mix"] < min(figures["code"]["mix"], figures["prose"]["mix"])
    assert all(0.5 < value < 8.0 for row in figures.values() for value in row.values())


def test_the_braid_can_be_used_as_built(built: DemoBuild, folder: Path) -> None:
    with BraidedLLM.from_config(config(folder)) as braided:
        braided.load_fusion_layers(folder / "fusion" / "v1")
        assert [braided.models[0].num_layers, braided.models[1].num_layers] == [4, 5]
        completion = braided.complete("def main(", 8, ignore_eos=True)
        assert len(completion.tokens) == 8
        assert set(completion.weights) == {"code", "prose"}


def test_a_service_of_another_user_can_read_what_was_built(built: DemoBuild, folder: Path) -> None:
    parts = [folder / name for name in ("code", "prose", "fusion")]
    for path in [*parts, *(inner for part in parts for inner in part.rglob("*"))]:
        readable = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & readable == readable, path


def test_the_card_records_the_training(built: DemoBuild, folder: Path) -> None:
    training = read_card(folder / "fusion" / "v1").raw["training"]
    assert training["steps"] == 10
    assert json.loads((folder / "code" / "training.json").read_text())["steps"] == 25


def test_a_second_build_finds_everything(built: DemoBuild, folder: Path) -> None:
    again = build_demo(folder, quiet(), config=config(folder), recipe=RECIPE)
    assert again.cached and not built.cached
    assert again.bits_per_byte == built.bits_per_byte


@pytest.mark.usefixtures("compared_at_once")
def test_what_was_deleted_is_built_again(built: DemoBuild, folder: Path) -> None:
    (folder / "fusion" / "v1" / "card.json").unlink()
    before = (folder / "code" / "model.safetensors").stat().st_mtime_ns
    assert not build_demo(folder, quiet(), config=config(folder), recipe=RECIPE).cached
    assert (folder / "fusion" / "v1" / "card.json").is_file()
    assert (folder / "code" / "model.safetensors").stat().st_mtime_ns == before


def test_weights_are_for_one_anchor(folder: Path) -> None:
    hashes = {
        build._Build(folder, quiet(), config(folder, anchor=anchor), RECIPE).fusion_hash
        for anchor in ("code", "prose")
    }
    assert len(hashes) == 2


@pytest.mark.usefixtures("compared_at_once")
def test_other_fusion_points_keep_the_specialists(built: DemoBuild, folder: Path) -> None:
    before = (folder / "code" / "model.safetensors").stat().st_mtime_ns
    changed = config(folder, points=(PointConfig(0.5, strategy="router"),))
    other = build_demo(folder, quiet(), config=changed, recipe=RECIPE)
    assert not other.cached
    assert (folder / "code" / "model.safetensors").stat().st_mtime_ns == before
    assert read_card(folder / "fusion" / "v1").plan.points[0].strategy == "router"
    assert not build_demo(folder, quiet(), config=config(folder), recipe=RECIPE).cached


@pytest.mark.usefixtures("compared_at_once")
def test_an_interrupted_stage_starts_again(
    built: DemoBuild, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "code" / "model.safetensors").stat().st_mtime_ns
    longer = replace(RECIPE, fusion=replace(RECIPE.fusion, num_steps=11))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "compare_on_held_out", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_demo(folder, quiet(), config=config(folder), recipe=longer)
    # The weights there are of the other recipe: they must not pass for this one's.
    rebuilt = build_demo(folder, quiet(), config=config(folder), recipe=RECIPE)
    assert not rebuilt.cached
    assert read_card(folder / "fusion" / "v1").raw["training"]["steps"] == 10
    assert (folder / "code" / "model.safetensors").stat().st_mtime_ns == before


def test_specialists_of_another_python_are_not_kept(
    built: DemoBuild, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have read what is held out here."""
    trained: list[str] = []
    monkeypatch.setattr(build, "read_corpus", lambda share: read_corpus(share=0.02))
    monkeypatch.setattr(
        build._Build, "_train_specialists", lambda self, corpus, show: trained.append("again")
    )
    monkeypatch.setattr(build._Build, "_train_fusion", lambda self, corpus, show: None)
    other = replace(RECIPE, evaluation_chars=1_999)
    with pytest.raises(KeyError, match="bits_per_byte"):  # nothing was trained in this test
        build_demo(folder, quiet(), config=config(folder), recipe=other)
    assert trained == ["again"]


def test_a_damaged_manifest_builds_anew(tmp_path: Path) -> None:
    (tmp_path / build.MANIFEST_FILE).write_text("{")
    assert build._read_manifest(tmp_path) == {}


def test_two_builds_at_once_are_refused(tmp_path: Path) -> None:
    with alone_in(tmp_path, "taken"), pytest.raises(ConflictError, match="another process"):
        build_demo(tmp_path, quiet(), config=config(tmp_path), recipe=RECIPE)


def test_shards_that_the_demo_does_not_train_are_named(tmp_path: Path) -> None:
    other = config(tmp_path, shards=(ShardConfig("poetry", "x"),), anchor="poetry")
    with pytest.raises(ConfigError, match="poetry"):
        build_demo(tmp_path, quiet(), config=other, recipe=RECIPE)


def test_a_failing_specialist_is_an_error_with_its_reason(tmp_path: Path) -> None:
    job = PretrainJob(RECIPE.specialists[0], 512, str(tmp_path / "no.safetensors"), "", str(tmp_path / "x"))
    with pytest.raises(BraidError, match=r"'code' ended with exit code 1: .*no\.safetensors"):
        train_specialists([job], tmp_path, lambda name, progress: None)


def test_the_tables_show_what_they_are_given() -> None:
    figures = {
        "braid": {"code": 1.625, "mix": 2.0},
        "code": {"code": 1.5, "mix": 2.5},
        "prose": {"code": 3.0, "mix": 2.75},
        "uniform mix": {"code": 2.0, "mix": 2.25},
    }
    console = Console(file=io.StringIO(), width=100)
    console.print(bits_per_byte_table(figures))
    console.print(share_table({"code": 0.25, "prose": 0.75}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(part in shown for part in ("1.500", "2.750", "braid", "25.0%", "75.0%"))
    assert gains(figures)["best model alone"] == pytest.approx({"code": -1 / 12, "mix": 0.2})
    assert gains(figures)["uniform mix"] == pytest.approx({"code": 0.1875, "mix": 1 / 9})
    lines = shown.splitlines()
    at = [
        next(i for i, line in enumerate(lines) if start in line)
        for start in ("│ code", "│ prose", "│ uniform mix", "│ braid", "gain over the best model alone")
    ]
    assert at == sorted(at), "the models first, whatever order figures come in"
    assert "-8.3%" in lines[at[-1]] and "+20.0%" in lines[at[-1]]
    text = coloured_tokens(
        [("def", {"code": 0.9, "prose": 0.1}), (" word", {"code": 0.4, "prose": 0.6}), ("!", {})]
    )
    assert text.plain == "def word!"
    assert [str(span.style) for span in text.spans] == ["cyan", "dim magenta"]


def test_the_deployed_braid_is_the_one_that_the_demo_trains() -> None:
    from braid_orchestrator.config.schema import load_braid_config

    deployed = load_braid_config(build._find_config())
    build._check_shards(deployed, RECIPE)
    assert deployed.fusion.weights == ".braid/demo/fusion"
    assert [shard.model for shard in deployed.shards] == [".braid/demo/code", ".braid/demo/prose"]
    assert torch.get_num_threads() == 1
