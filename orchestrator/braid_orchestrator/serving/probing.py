"""Asks gRPC servers whether they are well, by the standard health service."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from braid_rpc.channels import make_channel
from braid_rpc.errors import UnavailableError


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
