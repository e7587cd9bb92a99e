"""One at a time in a folder, and nothing left of it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from braid_orchestrator.folder_lock import alone_in
from braid_rpc.errors import ConflictError


def check_others_are_kept_out(folder: Path) -> None:
    with (
        alone_in(folder, "taken"),
        pytest.raises(ConflictError, match="taken"),
        alone_in(folder, "taken"),
    ):
        pass


def test_one_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "newer"
    for _ in range(2):
        with alone_in(folder, "taken"):
            for _ in range(2):  # a refusal frees nothing
                with pytest.raises(ConflictError, match=r"^taken$"), alone_in(folder, "taken"):
                    pass
            with alone_in(folder, "taken", ".another"):
                pass
            assert [path.name for path in folder.iterdir()] == [".lock"]
        assert not list(tmp_path.iterdir())


def test_a_file_that_was_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    check_others_are_kept_out(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_user_left_is_locked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".lock").touch(0o444)
    open_file = os.open

    def refuse_to_write(path: object, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_file(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse_to_write)
    check_others_are_kept_out(tmp_path)


def test_a_folder_that_another_one_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, removed = tmp_path / "run", []
    open_file = os.open

    def remove_and_open(*given: object) -> int:
        if not removed:
            removed.append(folder.rmdir())
        return open_file(*given)

    monkeypatch.setattr(os, "open", remove_and_open)
    with alone_in(folder, "taken"):
        assert removed and (folder / ".lock").exists()


def test_a_file_that_is_removed_between_opening_and_locking_it_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []

    def remove_and_lock(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(tmp_path / ".lock")
            removed[0].unlink()
        lock(descriptor, operation)

    lock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    check_others_are_kept_out(tmp_path)


def test_another_ones_file_stays(tmp_path: Path) -> None:
    with alone_in(tmp_path, "taken"):
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").write_text("another one's")
    assert (tmp_path / ".lock").read_text() == "another one's"


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_nobody_is_kept_out(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone_in(tmp_path, "taken"), alone_in(tmp_path, "taken"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_is_in_the_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (Path("/proc/nope"), tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"(nope|file|below)'$"), alone_in(place, "taken"):
            pass

    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="broken"), alone_in(tmp_path, "taken"):
        pass
