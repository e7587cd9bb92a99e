"""Which errors of the system are the folder's."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from braid_orchestrator.training.storing import storage_errors
from braid_rpc.errors import StorageError


def test_what_the_folder_refuses_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be written.*no checkpoint yet"), storage_errors(tmp_path):
        (tmp_path / "no" / "file").write_text("")


def test_a_folder_that_does_not_answer_is_a_folder(tmp_path: Path) -> None:
    late = OSError(errno.ETIMEDOUT, "Connection timed out", str(tmp_path / "file"))
    assert isinstance(late, TimeoutError)
    with pytest.raises(StorageError, match="cannot be written"), storage_errors(tmp_path):
        raise late


@pytest.mark.parametrize("error", [ConnectionResetError("peer"), TimeoutError("late")])
def test_a_connection_is_not_a_folder(error: OSError, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, storage_errors(tmp_path):
        raise error
    assert raised.value is error
