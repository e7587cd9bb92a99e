from __future__ import annotations

from pathlib import Path

import pytest

from braid_orchestrator.serving.api_keys import ApiKeys
from braid_rpc.errors import AuthenticationError, ConfigError


def test_nothing_set_means_nobody_is_asked() -> None:
    assert ApiKeys.load(None, {}) is None


def test_keys_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nfirst\n\n  second \n", encoding="utf-8")
    keys = ApiKeys.load(str(file), {"BRAID_API_KEYS": "third, fourth"})
    assert keys is not None
    for key in ("first", "second", "third", "fourth"):
        keys.check(f"Bearer {key}")
        keys.check(f"bearer  {key}")


@pytest.mark.parametrize(
    ("authorization", "words"),
    [
        (None, "got no API key"),
        ("", "got no API key"),
        ("Bearer", "another scheme"),
        ("Bearer ", "another scheme"),
        ("Basic first", "another scheme"),
        ("first", "another scheme"),
        ("Bearer firs", "not known"),
        ("Bearer first second", "not known"),
        ("Bearer # of the team", "not known"),
        ("Bearer caf\xe9", "not known"),
    ],
)
def test_what_is_no_key_is_refused_without_being_repeated(authorization: str | None, words: str) -> None:
    with pytest.raises(AuthenticationError, match=words) as refused:
        ApiKeys(["first", "second"]).check(authorization)
    assert "first" not in refused.value.message


@pytest.mark.parametrize("environment", [{}, {"BRAID_API_KEYS": " , "}])
def test_nothing_is_left_open_by_mistake(tmp_path: Path, environment: dict[str, str]) -> None:
    empty = tmp_path / "keys"
    empty.write_text("# none yet\n")
    with pytest.raises(ConfigError, match="got no API key in"):
        ApiKeys.load(str(empty), environment)
    with pytest.raises(ConfigError, match="got no API key in BRAID_API_KEYS"):
        ApiKeys.load(None, {"BRAID_API_KEYS": ""})
    with pytest.raises(ConfigError, match=r"auth\.api_keys_file: cannot read .*: No such file"):
        ApiKeys.load(str(tmp_path / "nowhere"), {"BRAID_API_KEYS": "x"})
