"""How a synchronous gRPC server is built and stopped, the same for every service. Knows no service's logic.

One call, one thread: hidden states are handed over by blocking threads, because waking an event loop costs
more than the wire. gRPC health and reflection are always on.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES, check_target, server_options, unix_path
from braid_rpc.errors import BraidError, ConflictError, InvalidRequestError
from braid_rpc.status import error_to_status
from braid_rpc.unexpected import unexpected_error
from braid_rpc.v1 import (
    braid_pb2,
    braid_pb2_grpc,
    fusion_pb2,
    fusion_pb2_grpc,
    shard_pb2,
    shard_pb2_grpc,
)

logger = logging.getLogger(__name__)

DEFAULT_MAX_CALLS = 64
PROBE_TIMEOUT_S = 0.5

# Generated base class, the function that adds it to a server, the service's full name.
_SERVICES: tuple[tuple[type, Callable[[Any, grpc.Server], None], str], ...] = (
    (
        shard_pb2_grpc.ShardServicer,
        shard_pb2_grpc.add_ShardServicer_to_server,
        shard_pb2.DESCRIPTOR.services_by_name["Shard"].full_name,
    ),
    (
        fusion_pb2_grpc.FusionServicer,
        fusion_pb2_grpc.add_FusionServicer_to_server,
        fusion_pb2.DESCRIPTOR.services_by_name["Fusion"].full_name,
    ),
    (
        braid_pb2_grpc.BraidServicer,
        braid_pb2_grpc.add_BraidServicer_to_server,
        braid_pb2.DESCRIPTOR.services_by_name["Braid"].full_name,
    ),
)


SocketIdentity = tuple[int, int, int]
"""Device, inode, and time of making: an inode's number is soon given to another file."""


class RunningServer:
    """A server that listens on ``targets``; each is what a client connects to, with the real port.

    Stop it with `stop`, or use it as a context manager.
    """

    def __init__(
        self,
        server: grpc.Server,
        targets: Sequence[str],
        health_servicer: health.HealthServicer,
        pool: ThreadPoolExecutor,
        service_names: Sequence[str],
        sockets: Mapping[str, SocketIdentity],
    ) -> None:
        self.targets = tuple(targets)
        self._server = server
        self._health = health_servicer
        self._pool = pool
        self._service_names = tuple(service_names)
        self._sockets = dict(sockets)

    def set_serving(self, serving: bool) -> None:
        """What the health service answers from now on, for the server and for each of its services."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._service_names):
            self._health.set(name, status)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the server has stopped; False if ``timeout_s`` passed first."""
        return not self._server.wait_for_termination(timeout_s)

    def stop(self, grace_s: float = 0.5) -> None:
        """Take no new calls, end the running ones after ``grace_s``, and wait until they have ended.

        May be called more than once.
        """
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for path, identity in self._sockets.items():
            # By now another server may have begun to listen there.
            if _socket_identity(path) == identity:
                os.unlink(path)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_server(
    servicers: Sequence[object],
    targets: Sequence[str],
    *,
    max_calls: int = DEFAULT_MAX_CALLS,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> RunningServer:
    """Serve ``servicers`` (of the `Shard`, `Fusion` or `Braid` service) on ``targets`` and return at once.

    Args:
        servicers: what implements the services; `ErrorInterceptor` turns what they raise into a status.
        targets: ``host:port`` (port 0: any free one) and ``unix:/path``; a socket file that nobody listens
            on is replaced.
        max_calls: calls, streams included, that run at the same time; each has a thread. More are refused
            with RESOURCE_EXHAUSTED rather than left waiting.
        max_message_bytes: limit of one message, both ways.

    Raises: InvalidRequestError for a malformed target, ConflictError for one that is taken.
    """
    if not targets:
        raise InvalidRequestError("targets: got none, expected at least one of 'host:port' or 'unix:/path'")
    for target in targets:
        check_target(target)
    pool = ThreadPoolExecutor(max_calls, thread_name_prefix="braid-call")
    server = grpc.server(
        pool,
        interceptors=(ErrorInterceptor(),),
        options=server_options(max_message_bytes),
        maximum_concurrent_rpcs=max_calls,
    )
    names = [_add(servicer, server) for servicer in servicers]
    health_servicer = health.HealthServicer(experimental_non_blocking=True)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        bound = [_bind(server, target) for target in targets]
    except ConflictError:
        server.stop(0)
        pool.shutdown(wait=False)
        raise
    server.start()
    paths = [unix_path(target) for target in bound if target.startswith("unix:")]
    sockets = {path: identity for path in paths if (identity := _socket_identity(path))}
    running = RunningServer(server, bound, health_servicer, pool, names, sockets)
    running.set_serving(True)
    return running


class ErrorInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Turns a `BraidError` that a servicer raises into status, details and trailing metadata.

    Anything else that is raised goes to the log with its traceback, and to the caller as INTERNAL with a
    number by which the log entry is found.
    """

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Wrap the handler that was found; gRPC's own services are left alone."""
        handler = continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith("/grpc."):
            return handler
        if handler.request_streaming and handler.response_streaming:
            make, behaviour = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        elif handler.response_streaming:
            make, behaviour = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        elif handler.request_streaming:
            make, behaviour = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        else:
            make, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        wrap = _wrap_stream if handler.response_streaming else _wrap_unary
        return make(wrap(behaviour, method), handler.request_deserializer, handler.response_serializer)


def _wrap_unary(behaviour: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return behaviour(request, context)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status for it
            _fail(error, context, method)

    return call


def _wrap_stream(behaviour: Callable[[Any, Any], Iterator[Any]], method: str) -> Callable[[Any, Any], Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from behaviour(request, context)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status for it
            _fail(error, context, method)

    return call


def _fail(error: Exception, context: grpc.ServicerContext, method: str) -> NoReturn:
    # The client is gone, or the servicer has set a status itself: both are gRPC's own exceptions.
    if isinstance(error, grpc.RpcError) or context.code() is not None:
        raise error
    if not isinstance(error, BraidError):
        error = unexpected_error(error, logger, method)
    code, details, metadata = error_to_status(error)
    context.set_trailing_metadata(metadata)
    context.abort(code, details)
    raise error  # abort has raised; this tells the type checker


def _add(servicer: object, server: grpc.Server) -> str:
    for base, add, name in _SERVICES:
        if isinstance(servicer, base):
            add(servicer, server)
            return name
    known = [base.__name__ for base, _, _ in _SERVICES]
    raise InvalidRequestError(f"servicers: got {type(servicer).__name__}, expected one of {known}")


def _bind(server: grpc.Server, target: str) -> str:
    if target.startswith("unix:"):
        _clear_way(target)
    try:
        port = server.add_insecure_port(target)
    except RuntimeError as error:
        raise ConflictError(f"target: cannot listen on {target}: {error}") from error
    if target.startswith("unix:"):
        return target
    return f"{target.rpartition(':')[0]}:{port}"


def _clear_way(target: str) -> None:
    """Remove a socket file that a dead server left; refuse to take one away from a living server."""
    path = unix_path(target)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_TIMEOUT_S)
            probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        if _socket_identity(path):
            os.unlink(path)
        return
    except OSError as error:
        raise ConflictError(
            f"target: cannot listen on {target}: cannot tell whether a server listens there: {error}"
        ) from error
    raise ConflictError(f"target: cannot listen on {target}: a server listens there already")


def _socket_identity(path: str) -> SocketIdentity | None:
    """Which socket ``path`` is; None if it is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns) if stat.S_ISSOCK(found.st_mode) else None
