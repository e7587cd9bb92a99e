"""The benchmarks run from the command line, with real processes, and print one object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import save_tiny_model
from programs import Program, eventually


def run(*arguments: str) -> dict[str, Any]:
    command = (sys.executable, "-m", "braid_orchestrator.cli", "bench", *arguments, "--quick", "--json")
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    value: dict[str, Any] = json.loads(ran.stdout)
    return value


def test_step_measures_every_side_and_its_braids_agree() -> None:
    value = run("step", "--rounds", "1", "--tokens", "3")
    assert {"a-left", "a-right", "b", "c", "d", "e", "f"} <= value["raw"]["ms_per_token"].keys()
    assert all(len(runs) == 1 and runs[0] > 0 for runs in value["raw"]["ms_per_token"].values())
    assert value["raw"]["same_tokens"]
    assert max(value["raw"]["idle_share_of_a_core"].values()) < 0.2
    names = [target["name"] for target in value["targets"]]
    assert names[:3] == ["(e) / (c)", "(f) / (c)", "(f) / (b)"]
    assert all({"name", "value", "limit", "met"} <= target.keys() for target in value["targets"])
    spans = value["raw"]["recordings"]["f"][0]["spans"]
    assert [len(times) for times in spans.values()] == [3] * 5


def test_naive_measures_both_ways_at_every_length() -> None:
    value = run("naive")
    assert len(value["raw"]["ms_per_token"]) == 3 * 2
    assert [target["relation"] for target in value["targets"]] == [">=", ">="]


def test_prefill_measures_every_side_and_where_the_time_goes() -> None:
    value = run("prefill")
    assert {"a-left", "a-right", "c", "d", "e", "f", "e-anchor"} == value["raw"]["ms"].keys()
    assert all(len(runs) == 1 and runs[0] > 0 for runs in value["raw"]["ms"].values())
    assert [target["name"] for target in value["targets"]] == ["(e) / (c)"]
    spans = value["raw"]["recordings"]["e"][0]["spans"]
    assert [len(times) for times in spans.values()] == [2] * 5  # 400 tokens are two chunks


def test_throughput_asks_a_whole_service_and_leaves_nothing_running() -> None:
    value = run("throughput")
    rates, first = value["raw"]["tokens_per_s"], value["raw"]["first_token_s"]
    assert {"left, static batch", "service, 1 session", "service, 4 sessions"} <= rates.keys()
    assert all(runs[0] > 0 for runs in (*rates.values(), *first.values()))
    assert [target["relation"] for target in value["targets"]] == [">=", "<=", "<="]
    assert len(first) == 4
    assert value["raw"]["service_cpu_s"] > 0


def test_a_service_does_not_outlive_the_benchmark_that_asks_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "braid_orchestrator.cli", "bench", "throughput", "--quick"]
    program = Program(command, tmp_path / "log", TMPDIR=str(tmp_path))

    def is_serving() -> bool:
        asked = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in program.pids()]
        return sum(b"shard" in words for words in asked) == 2

    try:
        program.wait_until(is_serving, 200, "two shards of the service")
        program.process.kill()
        program.process.wait()
        eventually(lambda: not program.pids(), 60, "the end of all processes")
    finally:
        program.clean_up()


def test_precision_measures_weights_and_frames(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = save_tiny_model(tmp_path / "tiny", 1)
    text = tmp_path / "text.txt"
    text.write_text("the other thing in there, a text of some length. " * 40, encoding="utf-8")
    value = run("precision", "--model", str(model), "--text", str(text))
    by_title = {table["title"]: table["rows"] for table in value["tables"]}
    rows = {row[0]: row for row in by_title["Weights: tiny"]}
    assert list(rows) == ["float32", "int8"]
    assert rows["float32"][1] > rows["int8"][1]
    assert all(0 < float(row[5]) < 16 for row in rows.values())
    frames = {row[0]: row for row in by_title["Frames between engine and shards"]}
    assert frames["float32"][1] > frames["int8"][1] > 0
    assert [float(frames[name][3]) > 0 for name in ("float32", "int8")] == [False, True]


@pytest.mark.parametrize("benchmark", ["step", "prefill", "throughput", "naive", "precision"])
def test_help_says_what_is_measured(benchmark: str) -> None:
    command = (sys.executable, "-m", "braid_orchestrator.cli", "bench", benchmark, "--help")
    assert "--quick" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_graft_measures_the_bare_model_and_every_preset() -> None:
    value = run("graft")
    sides = {"bare", "minimal", "standard", "full"}
    assert value["raw"]["seconds"].keys() == {
        f"{side} {what}" for side in sides for what in ("forward", "decode")
    }
    assert all(len(runs) == 1 and runs[0] > 0 for runs in value["raw"]["seconds"].values())
    assert value["raw"]["parameters"]["bare"][1] == 0
    assert all(value["raw"]["parameters"][side][1] > 0 for side in sides - {"bare"})
    assert all(one["peak_bytes"] > 0 for one in value["raw"]["memory"].values())
    assert len(value["targets"]) == 6


def test_graft_quality_lets_every_way_learn_the_same_text(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", seed=1)
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"line {n}: the other one said nothing." for n in range(300)), encoding="utf-8"
    )
    picture = tmp_path / "plots" / "quality.png"
    value = run("graft-quality", "--model", str(model), "--text", str(text), "--plot", str(picture))
    contests = value["raw"]["contests"]
    assert {one["method"] for one in contests} == {"graft", "lora", "mlp"}
    assert all(0 < result["test"] < 20 for one in contests for result in one["results"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_train_takes_the_same_steps_over_grpc_as_in_process() -> None:
    value = run("train")
    losses = value["raw"]["losses"]
    assert losses["gRPC"] == pytest.approx(losses["in process"], abs=1e-5) and losses["gRPC"]
    assert [one["num_layers"] for one in value["raw"]["memory"]] == [6, 12]
    for one in value["raw"]["memory"]:
        assert all(0 < kept <= value["settings"]["training_bytes"] for kept in one["kept_bytes"])


def test_worth_keys_measures_everybody_and_goes_on_where_it_was(tmp_path: Path) -> None:
    picture = tmp_path / "plots" / "keys.png"
    arguments = ("worth", "keys", "--work", str(tmp_path / "work"), "--plot", str(picture))
    value = run(*arguments)
    runs = value["raw"]["runs"]["0"]
    assert {"table", "calculator", "braid", "gate per token"} < set(runs) and len(runs) == 12
    assert all(runs[model]["num_parameters"] > 1000 for model in ("table", "calculator", "braid"))
    assert all(len(one["solved"]) == 4 for one in runs.values())
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = run(*arguments)
    assert again["raw"]["runs"] == value["raw"]["runs"]


@pytest.mark.parametrize("variant", ["larger", "tokenizers"])
def test_worth_keys_has_variants_with_reports_of_their_own(variant: str, tmp_path: Path) -> None:
    value = run("worth", "keys", "--variant", variant, "--work", str(tmp_path / "work"))
    assert value["benchmark"] == f"worth-keys-{variant}"
    assert len(value["raw"]["runs"]["0"]) == 5


def test_worth_specialists_measures_everybody_and_goes_on_where_it_was(tmp_path: Path) -> None:
    picture = tmp_path / "plots" / "specialists.png"
    arguments = ("worth", "specialists", "--work", str(tmp_path / "work"), "--plot", str(picture))
    value = run(*arguments)
    runs = value["raw"]["runs"]["0"]
    rows = {row: figures for one in runs.values() for row, figures in one["figures"].items()}
    assert len(rows) == 17
    assert all(
        0 < rows["oracle"][side][text] <= figures[side][text] * 1.2 < 20
        for figures in rows.values()
        for side in ("validation", "test")
        for text in ("mix", "code", "prose")
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = run(*arguments)
    assert again["raw"]["runs"] == value["raw"]["runs"]
    assert again["raw"]["wall_s"] < value["raw"]["wall_s"]


def test_worth_pretrained_measures_everybody_and_goes_on_where_it_was(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "anchor", 1, num_layers=4)
    stories = [f"Once there were {n} little cats, and all of them were happy.\n" * 4 for n in range(90)]
    (tmp_path / "stories.txt").write_text("<|endoftext|>\n".join(stories), encoding="utf-8")
    picture = tmp_path / "plots" / "pretrained.png"
    arguments = (
        "worth",
        "pretrained",
        "--anchor",
        str(tmp_path / "anchor"),
        "--text",
        str(tmp_path / "stories.txt"),
    )
    arguments += ("--work", str(tmp_path / "work"), "--plot", str(picture))
    value = run(*arguments)
    runs = value["raw"]["runs"]["0"]
    rows = {row: figures for one in runs.values() for row, figures in one["figures"].items()}
    assert len(rows) == 15
    assert all(
        0 < figures[side][text] < 40
        for figures in rows.values()
        for side in ("validation", "test")
        for text in ("mix", "anchor's text", "prose")
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = run(*arguments)
    assert again["raw"]["runs"] == value["raw"]["runs"]
    assert again["raw"]["wall_s"] < value["raw"]["wall_s"]
