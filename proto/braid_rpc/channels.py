"""How connections are made: targets, message limits, keepalive. Knows nothing of what is sent over them.

Clients and servers take their options from here, so that both sides agree on the largest message and on how
often a silent connection may be probed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import grpc
import grpc.aio

from braid_rpc.errors import InvalidRequestError

DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20
# Room for what surrounds the largest tensor in a message.
ENVELOPE_BYTES = 2**20
KEEPALIVE_INTERVAL_S = 20
KEEPALIVE_TIMEOUT_S = 10
# gRPC takes the least backoff for how long one attempt to connect may take; a refusal is known at once.
CONNECT_TIMEOUT_S = 5

# struct sockaddr_un has 108 bytes for the path on Linux and 104 elsewhere, the closing zero included.
MAX_UNIX_PATH_BYTES = 103

Options = list[tuple[str, int | str]]

_HOST_PORT = re.compile(r"^(?:dns:///|ipv4:|ipv6:)?(?:\[[0-9a-fA-F:.%]+\]|[^\s/:\[\]]+):(?P<port>\d{1,5})$")


def channel_options(max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> Options:
    """What every client channel is made with.

    Each channel has a connection of its own (streams of different callers don't share flow control), finds
    out within a minute and a half that a silent peer is gone (gRPC waits a minute for a ping's answer, whatever
    the keepalive timeout says), and never goes through an HTTP proxy: hidden states travel between neighbours.
    Repeating calls is left to the clients, which know what is safe to repeat.
    """
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_S * 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


def server_options(max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> Options:
    """What every server is made with; the counterpart of `channel_options`."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_INTERVAL_S * 1000 // 2),
        ("grpc.http2.max_ping_strikes", 0),
        # Two servers on one port would share its connections at random; the second had better fail.
        ("grpc.so_reuseport", 0),
    ]


SERVER_OPTIONS: Options = server_options()


def check_target(target: str) -> str:
    """``target`` itself if it is ``unix:/path`` or ``host:port``.

    Raises: InvalidRequestError, saying what is wrong with it.
    """
    if target.startswith("unix:"):
        path = unix_path(target)
        length = len(os.fsencode(path))
        if not path:
            raise InvalidRequestError(f"target: got {target!r}, expected a path after 'unix:'")
        if length > MAX_UNIX_PATH_BYTES:
            raise InvalidRequestError(
                f"target: got a socket path of {length} bytes, expected at most {MAX_UNIX_PATH_BYTES}: {path}"
            )
        return target
    match = _HOST_PORT.match(target)
    if match is None or int(match["port"]) > 65535:
        raise InvalidRequestError(f"target: got {target!r}, expected 'host:port' or 'unix:/path'")
    return target


def absolute_target(target: str) -> str:
    """The same address for whoever is in another folder: the path of a socket counts from the current one.

    Raises: InvalidRequestError, as `check_target`, also for a path that is too long only when it is absolute.
    """
    if not check_target(target).startswith("unix:") or unix_path(target).startswith("/"):
        return target
    return check_target(f"unix:{Path(unix_path(target)).absolute()}")


def unix_path(target: str) -> str:
    """The path of a ``unix:`` target, given as ``unix:/path``, ``unix:///path`` or ``unix:relative``."""
    path = target.removeprefix("unix:")
    return path.removeprefix("//") if path.startswith("///") else path


def make_channel(target: str, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> grpc.Channel:
    """A channel that connects on its first call; the caller closes it. Raises: InvalidRequestError."""
    return grpc.insecure_channel(check_target(target), options=channel_options(max_message_bytes))


def make_aio_channel(target: str, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """As `make_channel`, for the event loop that it is first used on."""
    return grpc.aio.insecure_channel(check_target(target), options=channel_options(max_message_bytes))
