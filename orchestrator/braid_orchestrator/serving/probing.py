"""Asks servers whether they are well: by gRPC's standard health service, or by a braid's routes for that."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from braid_rpc.channels import make_channel
from braid_rpc.errors import InvalidRequestError, UnavailableError

# The key that this program shows to a braid that asks for one.
OWN_KEY_VARIABLE = "BRAID_API_KEY"


def probe(target: str, timeout_s: float = 5.0) -> None:
    """Raises: UnavailableError unless the server says that it is serving."""
    with make_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise UnavailableError(f"{target}: no answer to a health check ({error.code().name})") from None
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        state = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        raise UnavailableError(f"{target}: got health {state}, expected SERVING")


def probe_http(url: str, path: str, timeout_s: float = 5.0) -> None:
    """Raises: UnavailableError, with the reason it gives, unless the server at ``url`` answers ``path`` with 200;
    InvalidRequestError for a ``url`` that is none."""
    if not urllib.parse.urlsplit(url).netloc:
        raise _no_url(url)
    # By the standard library: a container engine asks every few seconds, and a larger client takes longer to import.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(
            urllib.request.Request(url.rstrip("/") + path, headers=own_key_headers()), timeout=timeout_s
        ):
            return
    except urllib.error.HTTPError as error:
        with error:
            raise UnavailableError(f"{url}: got {error.code} from {path}: {_reason(error)}") from None
    except urllib.error.URLError as error:
        raise UnavailableError(f"{url}: no answer to a health check ({error.reason})") from None
    except (http.client.InvalidURL, ValueError):
        raise _no_url(url) from None
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise UnavailableError(f"{url}: no answer to a health check ({reason})") from None


def own_key_headers() -> dict[str, str]:
    """What shows the key of BRAID_API_KEY, if there is one, to a braid that asks for one."""
    key = os.environ.get(OWN_KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _no_url(url: str) -> InvalidRequestError:
    return InvalidRequestError(f"target: got {url!r}, expected a URL such as 'http://host:port'")


def _reason(error: urllib.error.HTTPError) -> str:
    """What a braid says about its state; else the status in words."""
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (OSError, ValueError, TypeError, LookupError):
        return error.reason


def wait_healthy(target: str, timeout_s: float, check_alive: Callable[[], None] = lambda: None) -> None:
    """Block until the server is well. ``check_alive`` may raise to end the waiting.

    Raises: UnavailableError after ``timeout_s``.
    """
    give_up_s = time.monotonic() + timeout_s
    while True:
        check_alive()
        try:
            return probe(target, timeout_s=1.0)
        except UnavailableError as error:
            if time.monotonic() > give_up_s:
                raise UnavailableError(f"{error.message}, for {timeout_s:g} s") from None
        time.sleep(0.05)
