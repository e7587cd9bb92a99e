"""The benchmarks run from the command line, with real processes, and print one object."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest


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


@pytest.mark.parametrize("benchmark", ["step", "naive"])
def test_help_says_what_is_measured(benchmark: str) -> None:
    command = (sys.executable, "-m", "braid_orchestrator.cli", "bench", benchmark, "--help")
    assert "--quick" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
