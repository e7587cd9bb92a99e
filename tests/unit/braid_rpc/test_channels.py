from __future__ import annotations

from pathlib import Path

import pytest

from braid_rpc.channels import (
    MAX_UNIX_PATH_BYTES,
    absolute_target,
    channel_options,
    check_target,
    server_options,
    unix_path,
)
from braid_rpc.errors import InvalidRequestError


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:0",
        "localhost:7001",
        "[::1]:80",
        "dns:///host.example:443",
        "unix:/tmp/a.sock",
        "unix:a.sock",
    ],
)
def test_addresses_that_are_understood(target: str) -> None:
    assert check_target(target) == target


@pytest.mark.parametrize(
    "target",
    [
        "",
        "localhost",
        "localhost:",
        "localhost:port",
        "localhost:70000",
        "http://localhost:80",
        "a b:1",
        "unix:",
    ],
)
def test_addresses_that_are_not(target: str) -> None:
    with pytest.raises(InvalidRequestError, match="target: got"):
        check_target(target)


def test_a_socket_path_that_the_system_would_cut_is_refused() -> None:
    fits = "/" + "a" * (MAX_UNIX_PATH_BYTES - 1)
    check_target(f"unix:{fits}")
    with pytest.raises(InvalidRequestError, match=f"got a socket path of {MAX_UNIX_PATH_BYTES + 1} bytes"):
        check_target(f"unix:{fits}b")


def test_unix_paths_in_all_their_spellings() -> None:
    assert unix_path("unix:/run/a") == unix_path("unix:///run/a") == "/run/a"
    assert unix_path("unix:a") == "a"


def test_a_socket_is_found_from_every_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert absolute_target("unix:run/a") == absolute_target("unix:./run/a") == "unix:/run/a"
    for target in ("unix:/run/a", "unix:///run/a", "localhost:7001", "dns:///host.example:443"):
        assert absolute_target(target) == target


def test_what_has_no_absolute_form_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("a" * MAX_UNIX_PATH_BYTES)
    deep.mkdir()
    monkeypatch.chdir(deep)
    assert check_target("unix:a") == "unix:a"
    for target, words in (
        ("unix:a", f"expected at most .*{deep}/a"),
        ("unix:", "expected a path"),
        ("a", "got 'a'"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            absolute_target(target)


def test_both_sides_agree_on_the_largest_message() -> None:
    limits = {"grpc.max_send_message_length": 123, "grpc.max_receive_message_length": 123}
    assert limits.items() <= dict(channel_options(123)).items()
    assert limits.items() <= dict(server_options(123)).items()


def test_a_server_never_takes_a_client_s_keepalive_for_an_attack() -> None:
    client, server = dict(channel_options()), dict(server_options())
    assert server["grpc.http2.min_ping_interval_without_data_ms"] < client["grpc.keepalive_time_ms"]
