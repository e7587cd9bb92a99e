from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from braid_orchestrator.cli.console import tell_left_out
from braid_orchestrator.cli.main import app

COMMANDS = (
    *("serve", "shard", "fusion", "generate", "describe", "health"),
    *("train", "eval", "train-decider", "demo", "bench"),
)


def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", **(env or {})})
    return result.exit_code, result.stdout, result.stderr


def test_help_names_every_command() -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in COMMANDS:
        assert command in out


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "bench"])
def test_help_of_a_command_teaches_by_example(command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"braid {command}" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "x", "--target", "http://127.0.0.1:1"], 1, "is a braid served there?"),
        (["generate", "x", "--target", "127.0.0.1:1"], 1, "127.0.0.1:1"),
        (["describe", "--target", "nonsense"], 2, "expected 'host:port' or 'unix:/path'"),
        (["generate", ""], 2, "prompt: got an empty prompt"),
        (["generate", "x", "--temperature", "-1"], 2, "temperature: got -1.0, expected between 0"),
        (["generate", "x", "--choices", "2"], 2, "--json only"),
        (["generate", "x", "--local", "--config", "no.yaml"], 2, "no.yaml: No such file"),
        (["generate", "x", "--use-braiding", "no"], 2, "got 'no', expected one of true, false, auto"),
        (["serve", "--config", "no.yaml"], 2, "no.yaml: No such file"),
        (["shard"], 2, "--model: missing"),
        (["shard", "--model", "./nothing"], 2, "nothing"),
        (["shard", "--model", "gpt2", "--dtype", "int7"], 2, "dtype: got 'int7'"),
        (["shard", "--model", "gpt2", "--cache", "much"], 2, "cache_bytes: got 'much'"),
        (["shard", "--model", "gpt2", "--config", "x.yaml"], 2, "expected one of the two"),
        (["fusion", "--config", "no.yaml"], 2, "no.yaml: No such file"),
        (["fusion", "--threads", "-1"], 2, "threads: got -1"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(arguments: list[str], code: int, words: str) -> None:
    got, out, err = run(*arguments)
    assert got == code, err
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_a_shard_that_is_not_in_the_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "braid.yaml"
    path.write_text("anchor: a\nshards: [{name: a, model: gpt2}]\n")
    code, _, err = run("shard", "--config", str(path), "--name", "b")
    assert code == 2
    assert "--name: got 'b', expected one of: a" in err


def test_asking_for_help_needs_neither_torch_nor_ray() -> None:
    check = (
        "import sys; from typer.testing import CliRunner; from braid_orchestrator.cli.main import app;"
        "assert CliRunner().invoke(app, ['generate', '--help']).exit_code == 0;"
        "sys.exit(', '.join({'torch', 'ray', 'transformers'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_path_in_brackets_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tell_left_out("app/[slug]/[/old]: no text")
    assert capsys.readouterr().err == "left out: app/[slug]/[/old]: no text\n"
