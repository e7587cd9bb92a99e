"""Checkpoint files appear whole or not at all, are read without running code, and only the last stay."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import tiny_trainer

from braid_fusion.errors import CheckpointMismatchError, CorruptCheckpointError, NoCheckpointError
from braid_fusion.training.checkpoint import CheckpointFolder, read_checkpoint, steps_in
from braid_fusion.whole_file import write_whole

CONTENT = {"tensor": torch.arange(5000.0), "values": [1, 0.1, None, "text", {"deep": (True, 2)}]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path / "deep" / "folder", keep=2).save(7, CONTENT)
    assert path.name == "step-00000007.ckpt"
    for place in (path, path.parent):
        found = read_checkpoint(place)
        assert torch.equal(found.pop("tensor"), CONTENT["tensor"])  # type: ignore[arg-type]
        assert found == {"values": CONTENT["values"]}


def test_the_last_few_stay_and_the_best_beside_them(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save_best({"weight": torch.ones(2)})
    (tmp_path / "notes.txt").write_text("mine")
    for step in (9, 10, 100, 99_999_999, 100_000_000):
        folder.save(step, CONTENT)
    assert [step for step, _ in steps_in(tmp_path)] == [99_999_999, 100_000_000]
    assert {path.name for path in tmp_path.iterdir()} == {
        "best.safetensors",
        "notes.txt",
        "step-99999999.ckpt",
        "step-100000000.ckpt",
    }


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from braid_fusion.training.checkpoint import CheckpointFolder
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file can grow beyond
folder = CheckpointFolder(Path(sys.argv[1]), keep=1)
folder.save(1, {"tensor": torch.zeros(100)})
for save in (lambda: folder.save(1, {"tensor": torch.ones(9000)}), lambda: folder.save(2, {"x": torch.ones(9000)})):
    try:
        save()
    except OSError as error:
        print(type(error).__name__)
"""


def test_a_disk_that_is_full_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["OSError", "OSError"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.ckpt"]
    assert torch.equal(read_checkpoint(tmp_path)["tensor"], torch.zeros(100))


def test_a_write_that_fails_at_the_last_moment_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("position", [3, 40, 200, -2000, -1])
def test_a_flipped_bit_is_noticed(tmp_path: Path, position: int) -> None:
    path = CheckpointFolder(tmp_path, keep=1).save(1, CONTENT)
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="damaged, or no checkpoint: got content that is not"):
        read_checkpoint(path)


def test_one_of_an_earlier_format_is_no_damaged_one(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path, keep=1).save(1, CONTENT)
    path.write_bytes(path.read_bytes().replace(b"checkpoint 2 ", b"checkpoint 1 ", 1))
    with pytest.raises(
        CheckpointMismatchError, match="got a checkpoint of format 1, expected 2: another version"
    ):
        read_checkpoint(path)


def test_half_a_file_an_empty_one_and_none_are_named(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path, keep=1).save(1, CONTENT)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CorruptCheckpointError, match=path.name):
        read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CorruptCheckpointError, match=r"step-00000001\.ckpt: damaged, or no"):
        read_checkpoint(tmp_path)
    with pytest.raises(NoCheckpointError, match=r"step-00000002\.ckpt: no run here to go on with"):
        read_checkpoint(tmp_path / "step-00000002.ckpt")


def test_a_damaged_one_is_told_with_what_the_run_can_go_on_from(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=3)
    paths = [folder.save(step, CONTENT) for step in (99_999_999, 100_000_000)]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match="damaged") as raised:
        read_checkpoint(tmp_path)
    assert "remove it, and the run can be resumed from step-99999999.ckpt, the one before it" in str(
        raised.value
    )
    assert "100000000" in str(raised.value)
    paths[1].unlink()
    with pytest.raises(CorruptCheckpointError, match=r"none before it in its folder.*begin anew"):
        read_checkpoint(tmp_path)


def test_a_file_that_is_none_of_a_runs_checkpoints_is_told_as_that(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run", keep=1)
    folder.save(4, CONTENT)
    best = folder.save_best({"weight": torch.ones(2)})
    expected = r"; expected step-….ckpt of a run, such as step-00000004.ckpt beside it$"
    with pytest.raises(CorruptCheckpointError, match=expected):
        read_checkpoint(best)
    alone = tmp_path / "alone"
    alone.write_bytes(best.read_bytes())
    with pytest.raises(CorruptCheckpointError, match=r"; expected step-….ckpt of a run$"):
        read_checkpoint(alone)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path, keep=1).save(1, {"tensor": torch.ones(1), "code": Malicious()})
    with pytest.raises(CorruptCheckpointError, match="torch can't load"):
        read_checkpoint(path)
    assert pickle.dumps(Malicious())


def test_a_run_keeps_the_last_few(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, checkpoint_every=3, keep_checkpoints=2).run()
    assert [step for step, _ in steps_in(tmp_path / "checkpoints")] == [15, 17]
