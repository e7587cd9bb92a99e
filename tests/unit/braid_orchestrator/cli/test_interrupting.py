"""Ctrl-C before anything is done: one line, and the exit code that shells give it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from braid_orchestrator.cli.main import app

# As a Ctrl-C does while a module of the command line is being imported.
IN_IMPORTING = """
import sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "braid_orchestrator.cli.train":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from braid_orchestrator.cli.entry import run
run()
"""
ROOT = Path(__file__).resolve().parents[4]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "braid.yaml"
    (tmp_path / "model").mkdir()
    path.write_text(
        yaml.safe_dump({"anchor": "a", "shards": [{"name": "a", "model": str(tmp_path / "model")}]})
    )
    (tmp_path / "text.txt").write_text("a text")
    return path


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.stderr


def test_while_the_command_line_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IN_IMPORTING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted before anything was done\n")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["braid"] == "braid_orchestrator.cli.entry:run"


def test_while_models_are_loaded(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("braid_orchestrator.training.reaching.load_here", interrupt)
    text = ("--config", config, "--text", tmp_path / "text.txt")
    told = "interrupted: there is no checkpoint yet to go on from\n"
    assert run("train", *text, "--into", tmp_path / "run") == (130, told)
    assert not (tmp_path / "run").exists()
    assert run("eval", *text) == (130, "interrupted: there are no figures\n")


def test_of_a_run_that_goes_on_its_checkpoint_is_told(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid_orchestrator.training.reaching.load_here", interrupt)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    code, told = run(
        *(
            "train",
            "--config",
            config,
            "--text",
            tmp_path / "text.txt",
            "--into",
            tmp_path / "run",
            "--resume",
        )
    )
    assert code == 130
    assert told == "interrupted: --resume goes on from its last checkpoint, step-00000004.ckpt\n"


def test_in_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("braid_orchestrator.bench.step.run_step", interrupt)
    monkeypatch.setattr("braid_orchestrator.bench.worth.keys.run_keys", interrupt)
    assert run("bench", "step", "--quick") == (130, "interrupted\n")
    code, told = run("bench", "worth", "keys", "--work", tmp_path)
    assert code == 130 and len(told.splitlines()) == 1
    assert told.startswith(f"interrupted: runs that were finished are in {tmp_path}, from which")
