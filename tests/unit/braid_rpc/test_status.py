from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid_rpc.errors import (
    ERROR_TYPES,
    STATUS_TYPES,
    BraidError,
    CacheFullError,
    CapacityError,
    FrameError,
    UnavailableError,
)
from braid_rpc.status import (
    MAX_DETAIL_BYTES,
    error_from_proto,
    error_from_rpc,
    error_from_status,
    error_to_proto,
    error_to_status,
)


@pytest.mark.parametrize("name", sorted(ERROR_TYPES))
def test_every_error_arrives_in_its_own_class(name: str) -> None:
    error = ERROR_TYPES[name]("got 1, expected 2 — nö", retry_after_s=1.25)
    code, details, metadata = error_to_status(error)
    assert all(key.isascii() and value.isascii() for key, value in metadata)
    for got in (error_from_status(code.name, details, metadata), error_from_proto(error_to_proto(error))):
        assert (type(got), got.message, got.retry_after_s) == (type(error), error.message, 1.25)


@pytest.mark.parametrize("status", [code.name for code in grpc.StatusCode])
def test_a_bare_status_gets_the_class_that_stands_for_it(status: str) -> None:
    error = error_from_status(status, "", ())
    assert type(error) is STATUS_TYPES.get(status, BraidError)
    assert status in error.message


@given(st.text(), st.text(), st.text(), st.text())
def test_whatever_a_peer_says_becomes_a_braid_error(status: str, details: str, name: str, retry: str) -> None:
    error = error_from_status(status, details, (("braid-error-type", name), ("braid-retry-after-s", retry)))
    assert isinstance(error, BraidError)
    assert 0 <= error.retry_after_s < float("inf")


@given(st.text(min_size=1, max_size=5), st.integers(MAX_DETAIL_BYTES // 8, MAX_DETAIL_BYTES))
def test_long_messages_are_cut_so_that_a_header_can_carry_them(piece: str, times: int) -> None:
    text = piece * times
    _, details, _ = error_to_status(BraidError(text))
    assert len(details.encode()) <= MAX_DETAIL_BYTES
    assert details == text or details.endswith("…")


def test_an_error_without_a_status_is_still_typed() -> None:
    assert type(error_from_rpc(grpc.RpcError())) is BraidError


def test_a_type_name_that_is_not_ours_falls_back_to_the_status() -> None:
    assert type(error_from_status("UNAVAILABLE", "x", (("braid-error-type", "OSError"),))) is UnavailableError
    assert type(error_from_status("RESOURCE_EXHAUSTED", "x", ())) is CapacityError
    metadata = (("braid-error-type", b"CacheFullError"),)
    assert type(error_from_status("RESOURCE_EXHAUSTED", "x", metadata)) is CacheFullError


@pytest.mark.parametrize(
    ("details", "told"),
    [
        (
            "Stream removed (CLIENT: Received message larger than max (3030 vs. 1000))",
            "got a reply of 3030 bytes, expected at most 1000, the client's max_message_bytes",
        ),
        (
            "CLIENT: Sent message larger than max (5003 vs. 1000)",
            "got a request of 5003 bytes, expected at most 1000, the client's max_message_bytes",
        ),
        (
            "SERVER: Received message larger than max (73400325 vs. 67108864)",
            "got a request of 73400325 bytes, expected at most 67108864, the server's max_message_bytes",
        ),
        (
            "SERVER: Sent message larger than max (9 vs. 8)",
            "got a reply of 9 bytes, expected at most 8, the server's max_message_bytes",
        ),
        (
            "Received message larger than max (9 vs. 8)",
            "got a message of 9 bytes, expected at most 8, the client's or the server's max_message_bytes",
        ),
        (
            "Decompressed message larger than max",
            "Decompressed message larger than max: see the client's or the server's max_message_bytes",
        ),
    ],
    ids=["reply here", "request here", "request there", "reply there", "no side named", "no numbers"],
)
def test_what_grpc_finds_too_large_is_no_lack_of_room(details: str, told: str) -> None:
    error = error_from_status("RESOURCE_EXHAUSTED", details, ())
    assert (type(error), error.message) == (FrameError, told)
    typed = error_from_status("RESOURCE_EXHAUSTED", details, (("braid-error-type", "CacheFullError"),))
    assert (type(typed), typed.message) == (CacheFullError, details)
