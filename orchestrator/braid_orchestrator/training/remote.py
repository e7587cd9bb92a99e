"""A shard over gRPC, for training: unary calls that any replica of the shard can answer, repeated until one does.

Knows how records travel and what may be repeated; what a span is, is the shard's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import grpc
import torch
from torch import Tensor

from braid_orchestrator.training.connection import Attempt, ShardConnection
from braid_rpc.calls import FIRST_PAUSE_S, LONGEST_PAUSE_S, describe_failure
from braid_rpc.cards import ShardCard
from braid_rpc.errors import (
    BraidError,
    CapacityError,
    DeadlineError,
    FrameError,
    RequestCancelledError,
    UnavailableError,
)
from braid_rpc.training import SpanInputs, SpanOutputs
from braid_rpc.v1 import shard_pb2
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
        patience_s: float = 120.0,
        connect_patience_s: float = 10.0,
        max_message_bytes: int,
    ) -> None:
        """Connect.

        Args:
            patience_s: for how long in all a shard that doesn't answer a call is asked again, from the call's first
                failure on. Time in which it was there doesn't count: a call has no deadline, for a shard that serves
                lets training wait. One that is gone, or stands still, is noticed by its connection.
            connect_patience_s: the same, before the first call.

        Raises: UnavailableError, ProtocolVersionError.
        """
        self._name = name
        self._patience_s = patience_s
        self._max_bytes = max_message_bytes
        patience = _Patience(connect_patience_s)
        while True:
            try:
                self._connection = ShardConnection(resolve, max_message_bytes)
                return
            except BraidError as error:
                if not patience.again(error):
                    raise self._named(error) from error

    @property
    def name(self) -> str:
        """The shard's name."""
        return self._name

    @property
    def target(self) -> str:
        """Where it is now."""
        return self._connection.target

    @property
    def card(self) -> ShardCard:
        """As described when the first connection was made."""
        return self._connection.card

    def tokenizer_json(self) -> str:
        """See `ports.TrainingShard`."""
        return self._connection.tokenizer_json

    def forward(self, inputs: SpanInputs[Tensor], graph_id: str = "") -> _Call[SpanOutputs[Tensor]]:
        """See `ports.TrainingShard`. Raises: FrameError for inputs that are too large for a message."""
        request = shard_pb2.ForwardRequest(graph_id=graph_id)
        put_inputs(inputs, request.inputs)

        def take(reply: shard_pb2.ForwardReply) -> SpanOutputs[Tensor]:
            self._connection.check_model(reply.model_hash)
            if graph_id:
                # What a shard that has forgotten the span will be sent: inputs, and gradients of outputs.
                self._check_size("Backward", request.ByteSize() + reply.ByteSize())
            outputs = take_outputs(reply.outputs, self._max_bytes, "outputs")
            if outputs.hidden is not None and outputs.hidden.dtype != getattr(torch, self.card.dtype):
                self._connection.check()
            return outputs

        return _Call(self, "Forward", request, take)

    def backward(
        self, graph_id: str, gradients: SpanOutputs[Tensor], inputs: SpanInputs[Tensor]
    ) -> _Call[Tensor]:
        """See `ports.TrainingShard`. Raises: FrameError for gradients that are too large for a message."""
        request = shard_pb2.BackwardRequest(graph_id=graph_id)
        put_outputs(gradients, request.gradients)

        def take(reply: shard_pb2.BackwardReply) -> Tensor | None:
            self._connection.check_model(reply.model_hash)
            if reply.is_gone and not request.HasField("inputs"):
                self._connection.check()  # perhaps with the whole shard
                put_inputs(inputs, request.inputs)
                return None
            return decode_torch(reply.hidden, max_bytes=self._max_bytes, what="backward.hidden")

        return _Call(self, "Backward", request, take)

    def shutdown(self) -> None:
        """See `ports.TrainingShard`."""
        self._connection.close()

    def _start(self, method: str, request: Any) -> Attempt:
        self._check_size(method, request.ByteSize())
        return self._connection.start(method, request)

    def _reply(self, attempt: Attempt) -> Any:
        """What an attempt is answered with. Raises: BraidError."""
        try:
            return attempt.future.result()
        except grpc.RpcError as failure:
            error = describe_failure(failure, attempt.target, None)
            if not isinstance(error, _PASSING):
                with suppress(*_PASSING):
                    self._connection.check()  # another shard refuses what this one would have taken
            raise error from None
        except grpc.FutureCancelledError as cancelled:  # with its channel, for another call
            raise UnavailableError(f"{attempt.target}: the connection was closed") from cancelled

    def _check_size(self, method: str, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise FrameError(
                f"{method} takes {num_bytes} bytes, expected at most {self._max_bytes} in one message; use fewer or "
                "shorter sequences per batch and accumulate more of them"
            )

    def _named(self, error: BraidError) -> BraidError:
        if error.message.startswith(f"shard {self._name!r}"):
            return error
        return type(error)(f"shard {self._name!r}: {error.message}", retry_after_s=error.retry_after_s)


class _Patience:
    """Whether to try again after a failure, and the pause before that."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._pause_s = FIRST_PAUSE_S
        self._give_up_s: float | None = None

    def again(self, error: BraidError, there_s: float = 0.0) -> bool:
        """After a pause, True; False if it makes no sense, or has been tried for long enough.

        Args:
            there_s: for how long of the time since the failure before the shard was there all the same.
        """
        if not isinstance(error, _PASSING):
            return False
        now_s = time.monotonic()
        self._give_up_s = now_s + self._patience_s if self._give_up_s is None else self._give_up_s + there_s
        pause_s = max(self._pause_s, error.retry_after_s)
        if now_s + pause_s > self._give_up_s:
            return False
        time.sleep(pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return True


class _Call(Generic[ResultT]):
    """A call under way; begun when it is made. ``take`` makes the result of a reply; None: to be asked again, for the
    request is another one now."""

    def __init__(
        self, shard: RemoteTrainingShard, method: str, request: Any, take: Callable[[Any], ResultT | None]
    ) -> None:
        self._shard = shard
        self._method = method
        self._request = request
        self._take = take
        self._patience = _Patience(shard._patience_s)
        self._attempt: Attempt | None = None
        try:
            self._attempt = shard._start(method, request)
        except UnavailableError:
            pass  # tried again when the result is asked for
        except BraidError as error:
            raise shard._named(error) from error

    def result(self) -> ResultT:
        """See `ports.Pending`."""
        shard = self._shard
        while True:
            attempt, self._attempt = self._attempt, None
            try:
                attempt = attempt or shard._start(self._method, self._request)
                result = self._take(shard._reply(attempt))
                if result is not None:
                    return result
            except BraidError as error:
                # Until its connection broke, a shard was there.
                there_s = 0.0
                if attempt is not None and isinstance(error, UnavailableError):
                    there_s = time.monotonic() - attempt.began_s
                if not self._patience.again(error, there_s):
                    raise shard._named(error) from error
                if attempt is not None:
                    shard._connection.lose(attempt)
