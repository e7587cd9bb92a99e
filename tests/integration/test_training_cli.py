"""`braid train` as a user meets it: what it refuses, in one line and before any text is read, and Ctrl-C."""

from __future__ import annotations

import json
import math
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from braids import braid_config, two_backends
from programs import Program
from served import served
from strict_parsing import parse_strictly
from training_shards import served_here
from typer.testing import CliRunner

from braid_fusion.training import read_log
from braid_fusion.training.checkpoint import steps_in
from braid_fusion.weights import read_card
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.cli.main import app
from braid_orchestrator.config.schema import load_braid_config
from braid_orchestrator.config.values import FusionConfig
from braid_orchestrator.training.data import load_texts
from braid_orchestrator.training.run import LOG_FILE, train_braid
from braid_rpc.fusion_client import FusionClient
from braid_services.fusion.main import serve_fusion

TRAIN = ("train", "--window", "16", "--batch", "2", "--held-out-share", "0")


@pytest.fixture
def config(settings: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "braid.yaml"
    path.write_text(yaml.safe_dump(settings))
    (tmp_path / "text.txt").write_text("the thing in the other inner theatre is thin there " * 12)
    return path


def arguments(config: Path, *more: str | Path) -> list[str]:
    text = config.parent / "text.txt"
    return [*TRAIN, "--config", str(config), "--text", str(text), *map(str, more)]


def run(config: Path, *more: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments(config, *more), env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def losses(folder: Path) -> list[tuple[int, float]]:
    log = folder / LOG_FILE
    return [(line["step"], line["loss"]) for line in read_log(log) if "loss" in line] if log.exists() else []


def test_what_cannot_be_trained_is_refused_in_one_line_before_any_text_is_read(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    code, out, err = run(config, "--steps", "1", "--into", done, "--json")
    assert code == 0 and json.loads(out)["record"]["steps"] == 1, err

    def read(*_: object, **__: object) -> None:
        raise AssertionError("texts are read")

    monkeypatch.setattr("braid_orchestrator.training.job.load_texts", read)
    monkeypatch.setattr(
        "braid_orchestrator.training.remote.RemoteTrainingShard.__init__.__kwdefaults__",
        {"patience_s": 0.1, "connect_patience_s": 0.1},
    )
    one_for_all = tmp_path / "one.yaml"
    alone = {**yaml.safe_load(config.read_text()), "points": [], "readout": "anchor"}
    one_for_all.write_text(yaml.safe_dump(alone))
    away = [part for name in ("left", "right") for part in ("--shard", f"{name}=127.0.0.1:1")]
    fresh = ("--into", tmp_path / "fresh")
    refused: list[tuple[tuple[str | Path, ...], int, str]] = [
        ((*fresh, "--precision", "fp16"), 2, "--precision: got 'fp16', expected one of float32, bf16"),
        ((*fresh, "--version", "a/b"), 2, "version: got 'a/b'"),
        ((*fresh, "--version", "untrained"), 2, "version: got 'untrained', expected another name"),
        (
            (*fresh, "--window", "300"),
            2,
            "window: got 300 tokens, expected at most 256, the context of shard",
        ),
        ((*fresh, "--resume"), 2, f"{tmp_path / 'fresh' / 'checkpoints'}: no run here to go on with"),
        (("--into", done), 1, "got checkpoints up to step-00000001.ckpt"),
        ((*fresh, "--config", one_for_all), 2, "got no trainable parameter"),
        ((*fresh, "--shard", "left=127.0.0.1:1"), 2, "--shard: got none for right"),
        ((*fresh, "--join"), 2, "got no state store"),
        ((*fresh, "--state", "redis://127.0.0.1:1"), 2, "--state: got a state store without --join"),
        ((*fresh, *away), 1, "shard 'left': 127.0.0.1:1"),
        ((*fresh, "--publish", "http://127.0.0.1:9"), 1, "http://127.0.0.1:9: no answer"),
        ((*fresh, "--publish", "127.0.0.1:9"), 1, "127.0.0.1:9"),
        ((*fresh, "--publish", "nonsense"), 2, "expected 'host:port' or 'unix:/path'"),
    ]
    for more, code, words in refused:
        got, _, err = run(config, *more)
        lines = err.splitlines()
        assert got == code and len(lines) == 1, (more, got, err)
        assert lines[0].startswith("error: ") and words in lines[0], (more, got, err)
        assert not (tmp_path / "fresh").exists(), more


@pytest.mark.usefixtures("no_model_loads")
def test_a_text_that_is_not_there_is_refused_before_models_are_loaded(config: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    for option, path, words in (
        ("--text", tmp_path / "txet.txt", "txet.txt: no such file or folder"),
        ("--text", text, "text.txt: got a text that is named twice"),
        ("--held-out", text, "text.txt: got a text that is to be trained on and held out"),
    ):
        code, _, err = run(config, "--into", tmp_path / "run", option, path)
        assert code == 2 and words in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model_loads")
def test_a_braid_that_takes_no_version_in_is_told_before_models_are_loaded(
    config: Path, tmp_path: Path
) -> None:
    closed = replace(braid_config(), fusion=FusionConfig(placement="embedded", max_publish_bytes=0))
    with served(two_backends(), closed) as braid:
        code, _, err = run(config, "--into", tmp_path / "run", "--publish", braid.url)
    told = f"error: {braid.url}: its fusion.max_publish_bytes is 0, so it takes no version in"
    assert (code, err.splitlines()) == (1, [told])
    assert not (tmp_path / "run").exists()


def test_who_serves_another_braid_is_told_before_any_text_is_read(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("texts are read")

    monkeypatch.setattr("braid_orchestrator.training.job.load_texts", read)
    backends = two_backends()
    plan = resolve_plan(braid_config(), [backend.card for backend in backends])
    with (
        served(backends, braid_config()) as braid,
        serve_fusion(None, None, [f"unix:{tmp_path}/fusion.sock"]) as server,
    ):
        with FusionClient(server.targets[0]) as client:
            client.prepare(plan)
        for target in (braid.url, server.targets[0]):
            code, _, err = run(config, "--into", tmp_path / "run", "--publish", target)
            (line,) = err.splitlines()
            assert code == 1 and line.startswith(f"error: {target}: got plan {plan.hash()}, expected "), err
            assert f"points[0].layers: this run has [1, 2], {target} has [1, 1]" in line, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_shard_of_another_name_than_was_given_is_told_before_any_text_is_read(
    command: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("texts are read")

    monkeypatch.setattr("braid_orchestrator.training.job.load_texts", read)
    monkeypatch.setattr("braid_orchestrator.evaluation.job.read_texts", read)
    given = ("--config", str(config), "--text", str(tmp_path / "text.txt"))
    if command == "train":
        given += ("--into", str(tmp_path / "run"))
    with served_here(load_braid_config(config).shards, tmp_path / "log") as places:
        left, right = places["left"], places["right"]
        for targets, name, other in (((right, left), "left", "right"), ((left, left), "right", "left")):
            shards = ("--shard", f"left={targets[0]}", "--shard", f"right={targets[1]}")
            result = CliRunner().invoke(app, [command, *given, *shards], env={"COLUMNS": "200"})
            told = f"error: --shard {name}: got shard {other!r} at {places[other]}, expected {name!r}"
            assert (result.exit_code, result.stderr.splitlines()) == (1, [told])
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model_loads")
def test_a_learning_rate_that_is_no_finite_number_is_refused_before_models_are_loaded(
    config: Path, tmp_path: Path
) -> None:
    into = ("--into", tmp_path / "run")
    code, _, err = run(config, *into, "--learning-rate", "inf")
    told = "error: optimiser.learning_rate: got inf, expected a number from 0 to 1e+15"
    assert (code, err.splitlines()) == (2, [told])
    code, _, err = run(config, *into, "--learning-rate", "nan")  # some versions of typer refuse it themselves
    assert code == 2 and "learning" in err
    assert not (tmp_path / "run").exists()


def test_a_text_that_cannot_be_read_is_refused_in_one_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{'text': 1}\n")
    code, _, err = run(config, "--into", tmp_path / "run", "--text", tmp_path / "bad.jsonl")
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and "bad.jsonl:1: got what is no JSON" in last, err


def test_ctrl_c_and_resume_give_the_curve_of_a_run_that_was_never_ended(config: Path, tmp_path: Path) -> None:
    steps = ("--steps", "30")
    folder = tmp_path / "ended"
    command = [
        *(sys.executable, "-m", "braid_orchestrator.cli"),
        *arguments(config, *steps, "--into", folder, "--json"),
    ]
    program = Program(command, tmp_path / "out.log", OMP_NUM_THREADS="1")
    try:
        program.wait_until(lambda: losses(folder) != [], 180.0, "a step is taken")
        assert program.stop(signal.SIGINT, 60.0) == 0, program.output()
    finally:
        program.clean_up()
    said = json.loads(program.output()[program.output().index("{\n") :])
    assert said["record"]["stopped_by"] == "interrupt" and said["weights"] is None
    assert 1 <= said["record"]["steps"] < 30 and len(losses(folder)) == said["record"]["steps"]
    resumed, straight = (
        run(config, *steps, "--json", "--into", *how)
        for how in ((folder, "--resume"), (tmp_path / "straight",))
    )
    assert resumed[0] == straight[0] == 0, (resumed[2], straight[2])
    assert losses(folder) == losses(tmp_path / "straight") and len(losses(folder)) == 30
    weights = [
        read_card(Path(json.loads(out)["weights"])).weights_sha256 for _, out, _ in (resumed, straight)
    ]
    assert weights[0] == weights[1]


def test_figures_that_are_not_finite_are_null_in_all_that_is_written(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {"loss": 2.0, "nan": None, "inf": None}
    figures = {"loss": 2.0, "nan": math.nan, "inf": -math.inf}
    monkeypatch.setattr("braid_orchestrator.training.run.evaluate", lambda *_: figures)
    into = ("--into", tmp_path / "run", "--held-out-share", "0.2", "--steps", "1")
    code, out, err = run(config, *into, "--json")
    assert code == 0, err
    told = parse_strictly(out)
    assert told["held_out"] == shown and told["record"]["final_loss"] > 0
    lines = [parse_strictly(line) for line in (tmp_path / "run" / LOG_FILE).read_text().splitlines()]
    assert {"step": 1, "evaluation": shown} in lines
    card = parse_strictly((tmp_path / "run" / "weights" / "trained" / "card.json").read_text())
    assert card["training"]["evaluations"] == [{"step": 1, "values": shown}]


def test_a_run_that_is_under_way_keeps_others_out_until_its_process_is_gone(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--steps", "40", "--checkpoint-every", "1")
    folder = tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "braid_orchestrator.cli"),
        *arguments(config, *options, "--into", folder),
    ]
    program = Program(command, tmp_path / "out.log", OMP_NUM_THREADS="1")
    told = (
        f"error: {folder}: got a run that is under way in it, expected none: wait for its end, or choose another "
        "folder (--into)"
    )
    try:
        program.wait_until(lambda: bool(steps_in(folder / "checkpoints")), 180.0, "a checkpoint is there")
        program.process.send_signal(signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr("braid_orchestrator.training.reaching.load_here", None)
            for more in ((), ("--resume",), ("--version", "other"), ("--resume", "--workers", "2")):
                code, _, err = run(config, *options, "--into", folder, *more)
                assert (code, err.splitlines()) == (1, [told])
        assert program.stop(signal.SIGKILL, 60.0) == -signal.SIGKILL
    finally:
        program.clean_up()
    assert 1 <= len(losses(folder)) < 40
    for how in (("--into", folder, "--resume"), ("--into", tmp_path / "straight")):
        code, _, err = run(config, *options, *how)
        assert code == 0, err
    assert losses(folder) == losses(tmp_path / "straight") and len(losses(folder)) == 40
    files, straight = ({path.name for path in run.iterdir()} for run in (folder, tmp_path / "straight"))
    assert files == straight and not any(name.startswith(".") for name in files)


def test_a_run_that_has_nothing_on_disk_yet_keeps_others_out(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = ("--into", tmp_path / "run", "--steps", "1")
    found: list[tuple[int, str]] = []

    def read(*given: object, **options: object) -> object:
        if not found:
            found.append((0, ""))
            code, _, err = run(config, *into)
            found[0] = (code, err)
        return load_texts(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("braid_orchestrator.training.job.load_texts", read)
    code, _, err = run(config, *into)
    assert code == 0, err
    assert found[0][0] == 1 and "got a run that is under way in it" in found[0][1], found


def _stopped_at_once(*given: Any, **options: Any) -> Any:
    return train_braid(*given, **{**options, "stop_wanted": lambda: True})


def test_ctrl_c_before_the_first_step_says_so(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = ("--into", tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr("braid_orchestrator.training.job.train_braid", _stopped_at_once)
        code, _, err = run(config, *into)
        assert code == 0 and "interrupted before the first step" in err and "--resume" not in err
        code, out, err = run(config, *into, "--json")
        assert code == 0 and parse_strictly(out)["record"]["final_loss"] is None
    code, _, err = run(config, *into, "--resume")
    assert code == 2 and "no run here to go on with" in err
    code, _, err = run(config, *into, "--steps", "1")
    assert code == 0, err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_run_whose_weights_cannot_be_published_is_told_all_the_same(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    # Whoever was there before training has gone since.
    monkeypatch.setattr("braid_orchestrator.training.publishing.ask_target", lambda target: None)
    into = ("--into", tmp_path / "run", "--steps", "1", "--publish", "http://127.0.0.1:9")
    code, out, err = run(config, *into, *(("--json",) if as_json else ()))
    weights = tmp_path / "run" / "weights" / "trained"
    last = err.strip().splitlines()[-1]
    assert code == 1 and last.startswith("error: http://127.0.0.1:9: no answer"), err
    if as_json:
        said = json.loads(out)
        assert said["weights"] == str(weights) and said["record"]["steps"] == 1 and said["published"] is None
    else:
        assert f"written to {weights}" in err and "1 steps in" in err
    assert read_card(weights).weights_sha256
