"""`braid train` where its folder can't be written: one line that says what is left, never a traceback."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from programs import tiny_braid_settings
from typer.testing import CliRunner

from braid_orchestrator.cli.main import app

# Log and events fit in, a checkpoint and a version of the weights don't.
MAX_FILE_BYTES = 20_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "braid.yaml").write_text(yaml.safe_dump(tiny_braid_settings(tmp_path)))
    (tmp_path / "text.txt").write_text("the thing in the other inner theatre is thin there " * 12)
    return tmp_path


@contextmanager
def full_disk() -> Iterator[None]:
    """As far as this process can tell: no file grows any further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def train(folder: Path, *arguments: str, into: str = "run") -> tuple[int, str]:
    """Exit code, and the last line on stderr; of an error, the only one."""
    command = [
        *("train", "--config", f"{folder}/braid.yaml", "--text", f"{folder}/text.txt"),
        *("--into", f"{folder}/{into}", "--held-out-share", "0", "--steps", "2", "--window", "12"),
    ]
    result = CliRunner().invoke(app, [*command, "--batch", "2", *arguments])
    if result.exit_code and "--workers" not in arguments:
        assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.exit_code, result.stderr.splitlines()[-1]


def test_a_full_disk_is_told_in_one_line_with_what_is_left(folder: Path) -> None:
    with full_disk():
        code, told = train(folder)
    assert code == 1
    assert told.startswith(f"error: run in {folder}/run: cannot be written: [Errno 27] File too large; ")
    assert told.endswith("there is no checkpoint yet to go on from")

    assert train(folder, into="later")[0] == 0
    with full_disk():
        code, told = train(folder, "--resume", into="later")
    assert code == 1
    assert told.endswith("--resume goes on from its last checkpoint, step-00000002.ckpt")
    assert train(folder, "--resume", into="later")[0] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_cannot_be_is_told_in_one_line(folder: Path, workers: int) -> None:
    (folder / "file").write_text("in the way")
    code, told = train(folder, "--workers", str(workers), into="file/run")
    assert code == 1
    assert told.startswith(f"error: run in {folder}/file/run: cannot be written: [Errno 20] Not a directory")


def refused_before_the_models(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str]:
    def load(*_: object) -> None:
        raise AssertionError("models are loaded")

    with monkeypatch.context() as patched:
        patched.setattr("braid_orchestrator.training.reaching.load_here", load)
        return train(folder, *arguments)


def test_where_nothing_can_be_written_is_told_before_models_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("in the way")
    for place in ("/proc/nope", f"{folder}/file/run"):
        code, told = refused_before_the_models(folder, monkeypatch, "--into", place)
        assert code == 1 and told.startswith(f"error: run in {place}: cannot be written: ")
    for place in ("/proc/nope/tb", f"{folder}/file/tb"):
        code, told = refused_before_the_models(folder, monkeypatch, "--tensorboard", place)
        assert code == 1 and told.startswith(f"error: tensorboard: {place} cannot be written: ")
    (folder / "run").mkdir()
    (folder / "run" / "checkpoints").write_text("in the way")
    code, told = refused_before_the_models(folder, monkeypatch)
    assert code == 1 and told.startswith(f"error: run in {folder}/run: cannot be written: [Errno 20]")


def test_weights_that_are_there_are_not_overwritten_by_a_new_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "run" / "weights"
    weights.mkdir(parents=True)
    (weights / "trained").write_text("something else")
    code, told = refused_before_the_models(folder, monkeypatch)
    assert code == 1 and f"{weights}/trained is no folder, expected a version or nothing there" in told
    (weights / "trained").unlink()
    (weights / "trained").mkdir()  # as good as nothing

    assert train(folder)[0] == 0
    before = (weights / "trained" / "card.json").read_bytes()
    (folder / "run" / "checkpoints").rename(folder / "elsewhere")
    code, told = refused_before_the_models(folder, monkeypatch)
    assert code == 1 and told.startswith(
        f"error: {weights}/trained: got a version of another run, expected none"
    )
    assert "--version" in told and "--into" in told
    assert (weights / "trained" / "card.json").read_bytes() == before
    assert train(folder, "--version", "other")[0] == 0
    assert train(folder, "--version", "other", "--resume")[0] == 0
