"""Whether a place can be written, found without leaving a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from braid_orchestrator.writable import check_file, check_folder


def test_what_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    check_folder(tmp_path / "there")
    check_folder(tmp_path / "new" / "newer")
    check_file(tmp_path / "there" / "file")
    check_file(tmp_path / "there" / "other")
    check_file(tmp_path / "new" / "file")
    check_file(Path("/dev/null"))
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "file"]
    assert (tmp_path / "there" / "file").read_text() == "old"


@pytest.mark.parametrize("place", ["/proc/nope", "/proc/nope/deeper", "file", "file/below", "file/far/below"])
def test_a_folder_that_cannot_be_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"nope|file"):
        check_folder(tmp_path / place)
    with pytest.raises(OSError, match=r"nope|file"):
        check_file(tmp_path / place / "figures")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        check_file(tmp_path)
