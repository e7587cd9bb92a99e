"""A shard over gRPC, for training: unary calls that any replica of the shard can answer, repeated until one does.

Knows how records travel and what may be repeated; what a span is, is the shard's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import grpc
from torch import Tensor

from braid_rpc.calls import FIRST_PAUSE_S, LONGEST_PAUSE_S, describe_failure
from braid_rpc.cards import ShardCard
from braid_rpc.channels import make_channel
from braid_rpc.errors import (
    BraidError,
    CapacityError,
    DeadlineError,
    FrameError,
    RequestCancelledError,
    UnavailableError,
    WeightMismatchError,
)
from braid_rpc.shard_client import ShardClient
from braid_rpc.training import SpanInputs, SpanOutputs
from braid_rpc.v1 import shard_pb2, shard_pb2_grpc
from braid_services.shard.training.messages import put_inputs, put_outputs, take_outputs
from braid_services.tensors import decode_torch

ResultT = TypeVar("ResultT")

# What may be over when it is tried again. A call that is repeated gives what it would have given.
_PASSING = (UnavailableError, DeadlineError, CapacityError, RequestCancelledError)


class RemoteTrainingShard:
    """A `TrainingShard` behind a gRPC server. ``resolve`` says where; it is asked again when nobody answers there."""

    def __init__(
        self,
        name: str,
        resolve: Callable[[], str],
        *,
        call_timeout_s: float = 1800.0,
        patience_s: float = 120.0,
        connect_patience_s: float = 10.0,
        max_message_bytes: int,
    ) -> None:
        """Connect.

        Args:
            call_timeout_s: of one attempt; long, for a shard that serves lets training wait. One that is gone is
                noticed by its connection.
            patience_s: for how long a shard that doesn't answer is asked again, from its first failure on.
            connect_patience_s: the same, before the first call.

        Raises: UnavailableError, ProtocolVersionError.
        """
        self._name = name
        self._resolve = resolve
        self._call_timeout_s = call_timeout_s
        self._patience_s = patience_s
        self._max_bytes = max_message_bytes
        self._lock = threading.Lock()
        attempts = _Attempts(connect_patience_s)
        while True:
            try:
                self._target = resolve()
                with ShardClient(self._target, retries=0, max_message_bytes=max_message_bytes) as client:
                    self._card = client.describe()
                    self._tokenizer_json = client.tokenizer_json()
                break
            except BraidError as error:
                if not attempts.again(error):
                    raise self._named(error) from error
        self._channel = make_channel(self._target, max_message_bytes)

    @property
    def name(self) -> str:
        """The shard's name."""
        return self._name

    @property
    def card(self) -> ShardCard:
        """As described when the connection was made."""
        return self._card

    def tokenizer_json(self) -> str:
        """See `ports.TrainingShard`."""
        return self._tokenizer_json

    def forward(self, inputs: SpanInputs[Tensor], graph_id: str = "") -> _Call[SpanOutputs[Tensor]]:
        """See `ports.TrainingShard`. Raises: FrameError for inputs that are too large for a message."""
        request = shard_pb2.ForwardRequest(graph_id=graph_id)
        put_inputs(inputs, request.inputs)

        def take(reply: shard_pb2.ForwardReply) -> SpanOutputs[Tensor]:
            self._check_model(reply.model_hash)
            if graph_id:
                # What a shard that has forgotten the span will be sent: inputs, and gradients of outputs.
                self._check_size("Backward", request.ByteSize() + reply.ByteSize())
            return take_outputs(reply.outputs, self._max_bytes, "outputs")

        return _Call(self, "Forward", request, take)

    def backward(
        self, graph_id: str, gradients: SpanOutputs[Tensor], inputs: SpanInputs[Tensor]
    ) -> _Call[Tensor]:
        """See `ports.TrainingShard`. Raises: FrameError for gradients that are too large for a message."""
        request = shard_pb2.BackwardRequest(graph_id=graph_id)
        put_outputs(gradients, request.gradients)

        def take(reply: shard_pb2.BackwardReply) -> Tensor:
            if reply.is_gone:
                put_inputs(inputs, request.inputs)
                reply = _Call(self, "Backward", request, lambda reply: reply).result()
            self._check_model(reply.model_hash)
            return decode_torch(reply.hidden, max_bytes=self._max_bytes, what="backward.hidden")

        return _Call(self, "Backward", request, take)

    def shutdown(self) -> None:
        """See `ports.TrainingShard`."""
        self._channel.close()

    def _start(self, method: str, request: Any) -> tuple[str, Any]:
        """One attempt: where it goes, and its future."""
        self._check_size(method, request.ByteSize())
        with self._lock:
            call = getattr(shard_pb2_grpc.ShardStub(self._channel), method)
            try:
                return self._target, call.future(request, timeout=self._call_timeout_s)
            except ValueError as error:  # the channel is closed
                raise UnavailableError(f"{self._target}: {error}") from error

    def _check_size(self, method: str, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise FrameError(
                f"{method} takes {num_bytes} bytes, expected at most {self._max_bytes} in one message; use fewer or "
                "shorter sequences per batch and accumulate more of them"
            )

    def _reconnect(self, failed_target: str) -> None:
        """Ask again where the shard is, and connect anew."""
        target = self._resolve()
        with self._lock:
            if self._target == failed_target:
                self._channel.close()
                self._target, self._channel = target, make_channel(target, self._max_bytes)

    def _check_model(self, model_hash: str) -> None:
        if model_hash != self._card.model_hash:
            raise WeightMismatchError(
                f"got an answer of model {model_hash[:12]}, expected "
                f"{self._card.model_hash[:12]}, which training began with"
            )

    def _named(self, error: BraidError) -> BraidError:
        if error.message.startswith(f"shard {self._name!r}"):
            return error
        return type(error)(f"shard {self._name!r}: {error.message}", retry_after_s=error.retry_after_s)


class _Attempts:
    """Whether to try again after a failure, and the pause before that."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._pause_s = FIRST_PAUSE_S
        self._give_up_s: float | None = None

    def again(self, error: BraidError) -> bool:
        """After a pause, True; False if it makes no sense, or has been tried for long enough."""
        if not isinstance(error, _PASSING):
            return False
        now_s = time.monotonic()
        if self._give_up_s is None:
            self._give_up_s = now_s + self._patience_s
        pause_s = max(self._pause_s, error.retry_after_s)
        if now_s + pause_s > self._give_up_s:
            return False
        time.sleep(pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return True


class _Call(Generic[ResultT]):
    """A call under way; begun when it is made."""

    def __init__(
        self, shard: RemoteTrainingShard, method: str, request: Any, take: Callable[[Any], ResultT]
    ) -> None:
        self._shard = shard
        self._method = method
        self._request = request
        self._take = take
        self._attempts = _Attempts(shard._patience_s)
        self._attempt: tuple[str, Any] | None = None
        try:
            self._attempt = shard._start(method, request)
        except UnavailableError:
            pass  # tried again when the result is asked for
        except BraidError as error:
            raise shard._named(error) from error

    def result(self) -> ResultT:
        """See `ports.Pending`."""
        shard = self._shard
        target = ""
        while True:
            try:
                target, attempt = self._attempt or shard._start(self._method, self._request)
                self._attempt = None
                try:
                    reply = attempt.result()
                except grpc.RpcError as failure:
                    raise describe_failure(failure, target, shard._call_timeout_s) from None
                except grpc.FutureCancelledError as cancelled:  # with its channel, for another call
                    raise UnavailableError(f"{target}: the connection was closed") from cancelled
                return self._take(reply)
            except BraidError as error:
                if not self._attempts.again(error):
                    raise shard._named(error) from error
            with suppress(UnavailableError):
                shard._reconnect(target)
