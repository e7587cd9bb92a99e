"""The `Braid` service over a braid: on a plain asynchronous gRPC server, and behind Ray Serve's gRPC proxy.

`BraidRpc` answers with messages and raises `BraidError`s; `BraidServicer` and `fail_serve_call` know how each
kind of server carries an error to the client (status, details, and the class in the trailing metadata).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from braid_orchestrator.serving.api_keys import ApiKeys, caller
from braid_orchestrator.serving.calls import begin_call, current_call, new_call
from braid_orchestrator.serving.grpc_messages import (
    card_message,
    event_message,
    generate_request,
    score_message,
    score_request,
)
from braid_orchestrator.serving.model_selection import answered_by
from braid_orchestrator.serving.port import BraidPort, as_generator
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES, server_options
from braid_rpc.errors import AuthenticationError, BraidError, UnavailableError
from braid_rpc.status import error_to_status
from braid_rpc.unexpected import unexpected_error
from braid_rpc.v1 import braid_pb2, braid_pb2_grpc

_log = logging.getLogger(__name__)

SERVICE_NAME = "braid.v1.Braid"


class BraidRpc:
    """The four calls, without a server around them."""

    def __init__(self, get_service: Callable[[], BraidPort], *, has_keys: bool = False) -> None:
        """``has_keys``: every call has shown an API key before it comes here."""
        self._get_service = get_service
        self._has_keys = has_keys

    async def admit(self, context: CallContext, method: str) -> None:
        """One more request of whoever calls; its id is in the metadata ``x-request-id`` if the caller chose one.

        Raises: RateLimitError, InvalidRequestError for an id that can't be one.
        """
        given = dict(context.invocation_metadata() or ()).get("x-request-id")
        begin_call(new_call(given, f"/{SERVICE_NAME}/{method}", _address(context)))
        await self._get_service().admit(_caller(context, self._has_keys))

    async def generate(
        self, message: braid_pb2.GenerateRequest
    ) -> AsyncGenerator[braid_pb2.GenerateEvent, None]:
        """Events as they come. Closing the generator cancels the request."""
        service = self._get_service()
        description = service.describe()
        shards = [shard.name for shard in description.shards]
        request = generate_request(message, braid=service.name, shards=shards)
        request = replace(request, request_id=current_call().name_request(request.request_id))
        request = await service.decide(request)
        model = answered_by(request, braid=service.name, anchor=description.anchor)
        async with aclosing(as_generator(service.generate(request))) as events:
            async for event in events:
                yield event_message(event, model, braided=request.use_braiding is True)

    async def score(self, message: braid_pb2.ScoreRequest) -> braid_pb2.ScoreReply:
        """Log-probabilities of a text."""
        service = self._get_service()
        request = await service.decide(score_request(message))
        model = answered_by(request, braid=service.name, anchor=service.describe().anchor)
        return score_message(await service.score(request), model, braided=request.use_braiding is True)

    async def describe(self, message: braid_pb2.DescribeBraidRequest) -> braid_pb2.BraidCard:
        """What the braid is made of."""
        return card_message(self._get_service().describe())

    async def cancel(self, message: braid_pb2.CancelRequest) -> braid_pb2.CancelReply:
        """End a running request."""
        return braid_pb2.CancelReply(cancelled=self._get_service().cancel(message.request_id))


class CallContext(Protocol):
    """What both kinds of server tell of a caller."""

    def invocation_metadata(self) -> Iterable[tuple[str, str]] | None:
        """What came with the call."""

    def peer(self) -> str:
        """From where it came: ``ipv4:127.0.0.1:40000``, say."""


def _caller(context: CallContext, has_keys: bool) -> str:
    """As for HTTP. An address is taken without its port, which is another for each connection."""
    metadata = dict(context.invocation_metadata() or ())
    return caller(metadata.get("authorization"), _address(context), has_keys=has_keys)


def _address(context: CallContext) -> str:
    peer = context.peer()
    return peer if peer.startswith("unix:") else peer.partition(":")[2].rpartition(":")[0].strip("[]")


def as_braid_error(error: Exception, method: str) -> BraidError:
    """What a client is told. Of an unexpected failure it gets a number; the log has the rest under it."""
    return error if isinstance(error, BraidError) else unexpected_error(error, _log, method)


class BraidServicer(braid_pb2_grpc.BraidServicer):  # type: ignore[misc]
    """`BraidRpc` on a `grpc.aio` server."""

    def __init__(self, rpc: BraidRpc) -> None:
        self._rpc = rpc

    async def Generate(  # noqa: N802  the protocol's name
        self, request: braid_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[braid_pb2.GenerateEvent, None]:
        """Stream a completion."""
        try:
            await self._rpc.admit(context, "Generate")
            async with aclosing(self._rpc.generate(request)) as messages:
                async for message in messages:
                    yield message
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status for it
            await _abort(context, error, "Generate")

    async def Score(  # noqa: N802
        self, request: braid_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> braid_pb2.ScoreReply:
        """Log-probabilities of a text."""
        try:
            await self._rpc.admit(context, "Score")
            return await self._rpc.score(request)
        except Exception as error:  # noqa: BLE001
            await _abort(context, error, "Score")

    async def Describe(  # noqa: N802
        self, request: braid_pb2.DescribeBraidRequest, context: grpc.aio.ServicerContext
    ) -> braid_pb2.BraidCard:
        """What the braid is made of."""
        try:
            return await self._rpc.describe(request)
        except Exception as error:  # noqa: BLE001
            await _abort(context, error, "Describe")

    async def Cancel(  # noqa: N802
        self, request: braid_pb2.CancelRequest, context: grpc.aio.ServicerContext
    ) -> braid_pb2.CancelReply:
        """End a running request."""
        try:
            return await self._rpc.cancel(request)
        except Exception as error:  # noqa: BLE001
            await _abort(context, error, "Cancel")


async def _abort(context: grpc.aio.ServicerContext, error: Exception, method: str) -> NoReturn:
    code, details, metadata = error_to_status(as_braid_error(error, method))
    await context.abort(code, details, metadata)
    raise error  # abort has raised; this tells the type checker


class ServeContext(CallContext, Protocol):
    """What is used of Ray Serve's context of a call."""

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        """What came with the call."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status to end with."""

    def set_details(self, details: str) -> None:
        """Its text."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        """What goes with it."""


def fail_serve_call(context: ServeContext, error: Exception, method: str) -> None:
    """Have a call behind Ray Serve's proxy end with an error's status.

    The proxy drops trailing metadata when a replica raises, but takes them from the context of whatever it
    answers. So the method returns (or yields, last) an empty message after this, which a client passes over.
    """
    code, details, metadata = error_to_status(as_braid_error(error, method))
    context.set_code(code)
    context.set_details(details)
    context.set_trailing_metadata(list(metadata))


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets no call pass without a key in the metadata ``authorization``, but health checks."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc."""
        if not details.method.startswith(f"/{health.SERVICE_NAME}/"):
            try:
                check_metadata(self._keys, details.invocation_metadata)
            except AuthenticationError as error:
                return grpc.stream_stream_rpc_method_handler(_refusing(error, details.method))
        return await continuation(details)


def check_metadata(keys: ApiKeys, metadata: Iterable[Any]) -> None:
    """Raises: AuthenticationError unless the metadata of a call hold one key."""
    values = [value for name, value in metadata if name == "authorization"]
    keys.check(values[0] if len(values) == 1 and isinstance(values[0], str) else None)


def _refusing(error: BraidError, method: str) -> Callable[[Any, grpc.aio.ServicerContext], Any]:
    async def refuse(requests: Any, context: grpc.aio.ServicerContext) -> None:
        await _abort(context, error, method)

    return refuse


class BraidServer:
    """A `grpc.aio` server of one braid, with health and reflection. Made, started and stopped in one loop."""

    def __init__(
        self,
        get_service: Callable[[], BraidPort],
        targets: Sequence[str],
        *,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        keys: ApiKeys | None = None,
    ) -> None:
        """``keys`` None: nobody is asked for a key."""
        interceptors = [] if keys is None else [ApiKeyInterceptor(keys)]
        self._server = grpc.aio.server(options=server_options(max_message_bytes), interceptors=interceptors)
        braid_pb2_grpc.add_BraidServicer_to_server(
            BraidServicer(BraidRpc(get_service, has_keys=keys is not None)), self._server
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.targets = tuple(self._bind(target) for target in targets)

    async def start(self) -> None:
        """Answer from now on."""
        await self._server.start()
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Take no new calls, and end the running ones after ``grace_s``."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    def _bind(self, target: str) -> str:
        try:
            port = self._server.add_insecure_port(target)
        except RuntimeError:
            raise UnavailableError(f"cannot listen on {target}, expected an address that is free") from None
        return target if target.startswith("unix:") else f"{target.rpartition(':')[0]}:{port}"
