"""`braid eval`, its shards loaded here, as services, or found in a store: the same figures, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from braids import shake
from programs import eventually
from redis_server import RedisServer
from strict_parsing import parse_strictly
from typer.testing import CliRunner

from braid_fusion.stack import FusionStack
from braid_fusion.weights import CARD_FILE, WEIGHTS_FILE, save_stack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.cli.main import app
from braid_orchestrator.config.schema import load_braid_config
from braid_orchestrator.evaluation import Estimate, Report, TextReport
from braid_orchestrator.evaluation.report import Figures
from braid_orchestrator.state.fusion_version import FusionVersion
from braid_orchestrator.state.fusion_weights import FusionWeights
from braid_orchestrator.state.lease import Lease, shard_record
from braid_orchestrator.state.opening import open_store
from braid_orchestrator.state.registry import Registry
from braid_services.shard.backend import ShardBackend
from braid_services.shard.main import serve_shard

EVAL = ("eval", "--window", "16", "--resamples", "50")
SHARDS = ["left", "right"]
BASELINES = ["uniform mix", "posterior mix"]


@pytest.fixture
def config(settings: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "braid.yaml"
    path.write_text(yaml.safe_dump(settings))
    (tmp_path / "one.txt").write_text("the thing in the other inner theatre is thin there " * 6)
    (tmp_path / "two.txt").write_text("né à Zürich, then they're in the north. " * 6)
    (tmp_path / "fit.txt").write_text("there is another thing in here, the inner one. " * 12)
    return path


def weights(config: Path, folder: Path, seed: int = 3) -> Path:
    """A version that does something."""
    braid = load_braid_config(config)
    stack = FusionStack(resolve_plan(braid, [ShardBackend.load(shard).card for shard in braid.shards]))
    shake(stack, seed)
    save_stack(stack, folder, {"note": "random"})
    return folder


def run(config: Path, *arguments: str | Path) -> tuple[int, str, str]:
    given = [*EVAL, "--config", str(config), *map(str, arguments)]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def figures(config: Path, *arguments: str | Path) -> dict[str, Any]:
    code, out, err = run(config, *arguments, "--json", "-")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_all_that_was_asked_for_is_told(config: Path, tmp_path: Path) -> None:
    version = weights(config, tmp_path / "trained")
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    code, out, err = run(
        config,
        *("--text", one, "--text", two, "--fit", tmp_path / "fit.txt", "--fit-steps", "5"),
        *("--weights", version, "--json", tmp_path / "out" / "f.json", "--png", tmp_path / "out" / "f.png"),
    )
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "f.json").read_text(encoding="utf-8"))
    assert [text["name"] for text in found["texts"]] == [str(one), str(two), "all together"]
    names = [*SHARDS, *BASELINES, "global mix", "token gate", "braid", "oracle"]
    for text in found["texts"]:
        assert [row["name"] for row in text["rows"]] == names
        for row in text["rows"]:
            bits, hits = row["bits_per_byte"], row["accuracy"]
            assert bits["low"] < bits["value"] < bits["high"] and hits["low"] <= hits["value"] <= hits["high"]
    kinds = {row["name"]: row["kind"] for row in found["texts"][0]["rows"]}
    assert kinds["oracle"] == "bound" and kinds["braid"] == "braid" and kinds["left"] == "shard"
    assert found["fit"]["texts"] == [str(tmp_path / "fit.txt")] and found["fit"]["steps_done"] == 5
    assert found["settings"]["weights_version"] == "trained" and found["settings"]["window"] == 16
    said = " ".join(out.split())
    for words in (
        *names,
        "all together",
        "5 steps of 8 × 16 tokens",
        "no model can do that",
        "weights trained",
    ):
        assert words in said
    assert (tmp_path / "out" / "f.png").read_bytes().startswith(b"\x89PNG")


def test_figures_that_are_not_finite_are_null_in_json(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tuple(
        Figures(name, kind, Estimate(figure, figure, figure), None, 4, None, None)
        for name, kind, figure in (("left", "shard", math.inf), ("braid", "braid", math.nan))
    )
    found = Report((TextReport("one", 1, 1, "window", 10, "left", rows),))
    monkeypatch.setattr("braid_orchestrator.evaluation.job.do_evaluation", lambda *_, **__: found)
    told = []
    for place in ("-", tmp_path / "f.json"):
        code, out, err = run(config, "--text", tmp_path / "one.txt", "--json", place)
        assert code == 0, err
        told.append(parse_strictly(out if place == "-" else (tmp_path / "f.json").read_text()))
    assert told[0] == told[1]
    for row in told[0]["texts"][0]["rows"]:
        assert row["bits_per_byte"] == {"value": None, "low": None, "high": None}


def test_shards_as_services_give_the_same_figures(config: Path, tmp_path: Path) -> None:
    version = weights(config, tmp_path / "trained")
    arguments = ("--text", tmp_path / "one.txt", "--weights", version)
    here = figures(config, *arguments)
    braid = load_braid_config(config)
    with ExitStack() as stack:
        places: list[str] = []
        for shard in braid.shards:
            server = stack.enter_context(serve_shard(shard, ["127.0.0.1:0"]))
            places += ["--shard", f"{shard.name}={server.targets[0]}"]
        there = figures(config, *arguments, *places)
    for own, other in zip(here["texts"][0]["rows"], there["texts"][0]["rows"], strict=True):
        assert own["bits_per_byte"]["value"] == pytest.approx(other["bits_per_byte"]["value"], rel=1e-6)
        assert own["accuracy"] == pytest.approx(other["accuracy"])
    untrained = figures(config, "--text", tmp_path / "one.txt")
    assert untrained["settings"]["weights_version"] == "untrained"
    # An untrained gate over untrained points is the plain average; the trained one is not.
    by_name = {row["name"]: row["bits_per_byte"]["value"] for row in untrained["texts"][0]["rows"]}
    assert by_name["braid"] == pytest.approx(by_name["uniform mix"], rel=1e-5)
    assert by_name["braid"] != pytest.approx(here["texts"][0]["rows"][4]["bits_per_byte"]["value"], rel=1e-3)


def test_the_version_that_is_active_in_the_store_is_evaluated(
    settings: dict[str, Any], config: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    version = weights(config, tmp_path / "trained")
    config.write_text(yaml.safe_dump({**settings, "state": {"store": "redis", "url": redis_server.url}}))
    braid = load_braid_config(config)
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(braid.state, braid.name)))
        for shard in braid.shards:
            server = stack.enter_context(serve_shard(shard, ["127.0.0.1:0"]))
            record = shard_record(shard.name, server.targets, None)
            stack.enter_context(Lease(store, record, braid.state.heartbeat_s, braid.state.expiry_s))
        eventually(
            lambda: all(Registry(store).replicas(name) for name in SHARDS), 20.0, "shards are registered"
        )
        arguments = ("--text", tmp_path / "one.txt", "--no-accuracy")
        before = figures(config, *arguments, "--join")
        card, data = (version / CARD_FILE).read_text(), (version / WEIGHTS_FILE).read_bytes()
        FusionWeights(store).offer("published", card, data, ())
        FusionVersion(store).set("published")
        joined = figures(config, *arguments, "--join")
        given = figures(config, *arguments, "--join", "--weights", version)
    assert before["settings"]["weights_version"] == "untrained"
    assert joined["settings"]["weights_version"] == "published"
    assert joined["texts"] == given["texts"] != before["texts"]
    assert joined["texts"][0]["rows"][0]["accuracy"] is None


def test_what_cannot_be_evaluated_is_refused_in_one_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n \n")
    (tmp_path / "short.txt").write_text("a few words, and a few more. " * 8)
    one = ("--text", tmp_path / "one.txt")
    other = tmp_path / "other.yaml"
    settings = yaml.safe_load(config.read_text())
    other.write_text(yaml.safe_dump({**settings, "points": [{"at": 0.5, "strategy": "weighted"}]}))
    refused: list[tuple[tuple[str | Path, ...], int, str]] = [
        (("--text", tmp_path / "empty.txt"), 2, "empty.txt: got no text"),
        (("--text", tmp_path / "blank.txt"), 2, "1 left out: documents of nothing but white space"),
        (("--text", tmp_path / "nothing.txt"), 2, "nothing.txt: no such file"),
        ((*one, "--text", f"{tmp_path}/./one.txt"), 2, "one.txt: got a text that is named twice"),
        (("--text", "all together"), 2, "got 'all together', expected another name"),
        ((*one, "--fit", tmp_path / "one.txt"), 2, "fitted on and evaluated on"),
        ((*one, "--fit", tmp_path / "blank.txt"), 2, "blank.txt: got"),
        ((*one, "--window", "300"), 2, "window: got 300 tokens, expected at most 256, the context of shard"),
        ((*one, "--weights", weights(other, tmp_path / "theirs")), 1, "points"),
        ((*one, "--weights", tmp_path / "none"), 2, "no file or folder"),
        ((*one, "--shard", "left=127.0.0.1:1"), 2, "--shard: got none for right"),
        ((*one, "--join"), 2, "got no state store"),
        ((*one, "--state", "redis://127.0.0.1:1"), 2, "--state: got a state store without --join"),
        (
            (*one, "--window", "250", "--fit", tmp_path / "short.txt"),
            2,
            "fit, without what is held out of it: got",
        ),
        ((*one, "--forgetting", "2"), 2, "forgetting: got 2.0"),
        ((*one, "--unit", "line"), 2, "unit: got 'line'"),
        ((*one, "--confidence", "0"), 2, "confidence: got 0.0"),
    ]
    for arguments, code, words in refused:
        got, _, err = run(config, *arguments)
        *left_out, last = err.splitlines()
        assert got == code and last.startswith("error: ") and words in last, (arguments, got, err)
        assert all(line.startswith("left out: ") for line in left_out), err


@pytest.mark.usefixtures("no_model_loads")
def test_what_needs_no_model_is_refused_before_any_is_loaded(config: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    one = ("--text", tmp_path / "one.txt")
    refused: list[tuple[tuple[str | Path, ...], int, str]] = [
        (("--text", tmp_path / "eno.txt"), 2, "eno.txt: no such file"),
        ((*one, "--fit", tmp_path / "tif.txt"), 2, "tif.txt: no such file"),
        ((*one, "--json", tmp_path / "folder"), 1, "figures cannot be written: [Errno 21] Is a directory"),
        ((*one, "--json", tmp_path / "one.txt" / "f.json"), 1, "figures cannot be written: [Errno 20]"),
        ((*one, "--png", tmp_path / "one.txt" / "f.png"), 1, "figures cannot be written: [Errno 20]"),
    ]
    for arguments, code, words in refused:
        got, _, err = run(config, *arguments)
        assert got == code and words in err and len(err.splitlines()) == 1, (arguments, got, err)


@pytest.mark.parametrize(("training_bytes", "turn_rows"), [("40 KiB", 32), (0, 32), (0, 1)])
def test_mixes_are_fitted_within_what_a_shard_takes(
    training_bytes: str | int, turn_rows: int, config: Path, tmp_path: Path
) -> None:
    """And files that can't be read are told."""
    settings = yaml.safe_load(config.read_text())
    for shard in settings["shards"]:
        shard.update(training_bytes=training_bytes, training_turn_rows=turn_rows)
    config.write_text(yaml.safe_dump(settings))
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit.txt").rename(tmp_path / "fit" / "fit.txt")
    (tmp_path / "fit" / "latin.txt").write_bytes("né à Zürich".encode("latin-1"))
    code, out, err = run(
        config, "--text", tmp_path / "one.txt", "--fit", tmp_path / "fit", "--fit-steps", "3", "--json", "-"
    )
    assert code == 0, err
    assert json.loads(out)["fit"]["windows_at_once"] < 8
    assert "left out: 1 left out: files that are not text in UTF-8" in err


@pytest.mark.parametrize("turn_rows", [1, 24])
def test_short_documents_are_run_together_as_far_as_a_shard_takes_them(
    turn_rows: int, config: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"It is {number}."}) + "\n" for number in range(20)))
    whole = figures(config, "--text", texts)
    settings = yaml.safe_load(config.read_text())
    for shard in settings["shards"]:
        shard.update(training_bytes=0, training_turn_rows=turn_rows)
    config.write_text(yaml.safe_dump(settings))
    for text, other in zip(whole["texts"], figures(config, "--text", texts)["texts"], strict=True):
        for row, same in zip(text["rows"], other["rows"], strict=True):
            assert row["bits_per_byte"] == pytest.approx(same["bits_per_byte"], rel=1e-4)


def test_mixes_of_one_shard_are_refused(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    alone = {"shards": settings["shards"][:1], "points": [], "readout": {"kind": "anchor"}}
    config.write_text(yaml.safe_dump({**settings, **alone}))
    code, _, err = run(config, "--text", tmp_path / "one.txt", "--fit", tmp_path / "fit.txt")
    assert code == 2 and "got" in err and "one shard, 'left', expected several" in err


def test_a_shard_that_is_away_is_named(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "braid_orchestrator.training.remote.RemoteTrainingShard.__init__.__kwdefaults__",
        {"patience_s": 0.1, "connect_patience_s": 0.1},
    )
    places = [part for name in SHARDS for part in ("--shard", f"{name}=127.0.0.1:1")]
    code, _, err = run(config, "--text", tmp_path / "one.txt", *places)
    assert code == 1 and "shard 'left'" in err and "127.0.0.1:1" in err


def test_a_picture_without_matplotlib_is_refused_before_anything_is_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run(config, "--text", tmp_path / "one.txt", "--png", tmp_path / "f.png")
    assert code == 2 and "pip install '.[plots]'" in err
