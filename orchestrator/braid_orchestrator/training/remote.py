"""A shard over gRPC, for training: unary calls that any replica of the shard can answer, repeated until one does.

Knows how records travel and what may be repeated; what a span is, is the shard's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from torch import Tensor

from braid_rpc.calls import FIRST_PAUSE_S, LONGEST_PAUSE_S, describe_failure
from braid_rpc.cards import ShardCard
from braid_rpc.channels import make_channel
from braid_rpc.errors import BraidError, FrameError, UnavailableError, WeightMismatchError
from braid_rpc.shard_client import ShardClient
from braid_rpc.training import SpanInputs, SpanOutputs
from braid_rpc.v1 import shard_pb2, shard_pb2_grpc
from braid_services.shard.training.messages import put_inputs, put_outputs, take_outputs
from braid_services.tensors import decode_torch

ResultT = TypeVar("ResultT")


class RemoteTrainingShard:
    """A `TrainingShard` behind a gRPC server. ``resolve`` says where; it is asked again when nobody answers there."""

    def __init__(
        self,
        name: str,
        resolve: Callable[[], str],
        *,
        call_timeout_s: float = 300.0,
        patience_s: float = 120.0,
        max_message_bytes: int,
    ) -> None:
        """Connect.

        Args:
            call_timeout_s: of one attempt.
            patience_s: for how long a shard that doesn't answer is asked again.

        Raises: UnavailableError, ProtocolVersionError.
        """
        self._name = name
        self._resolve = resolve
        self._call_timeout_s = call_timeout_s
        self._patience_s = patience_s
        self._max_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._target = resolve()
        try:
            with ShardClient(self._target, max_message_bytes=max_message_bytes) as client:
                self._card = client.describe()
                self._tokenizer_json = client.tokenizer_json()
        except BraidError as error:
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
        size = request.ByteSize()
        if size > self._max_bytes:
            raise FrameError(
                f"shard {self._name!r}: {method} takes {size} bytes, expected at most {self._max_bytes} in one "
                "message; use fewer or shorter sequences per batch and accumulate more of them"
            )
        with self._lock:
            target, channel = self._target, self._channel
        call = getattr(shard_pb2_grpc.ShardStub(channel), method)
        return target, call.future(request, timeout=self._call_timeout_s)

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
                f"shard {self._name!r}: got an answer of model {model_hash[:12]}, expected "
                f"{self._card.model_hash[:12]}, which training began with"
            )

    def _named(self, error: BraidError) -> BraidError:
        return type(error)(f"shard {self._name!r}: {error.message}", retry_after_s=error.retry_after_s)


@dataclass(slots=True)
class _Call(Generic[ResultT]):
    """A call under way; begun when it is made."""

    shard: RemoteTrainingShard
    method: str
    request: Any
    take: Callable[[Any], ResultT]
    _attempt: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        self._attempt = self.shard._start(self.method, self.request)

    def result(self) -> ResultT:
        """See `ports.Pending`."""
        shard, pause_s = self.shard, FIRST_PAUSE_S
        give_up_s = time.monotonic() + shard._patience_s
        while True:
            try:
                target, attempt = self._attempt or shard._start(self.method, self.request)
                self._attempt = None
                try:
                    return self.take(attempt.result())
                except grpc.RpcError as failure:
                    raise describe_failure(failure, target, shard._call_timeout_s) from None
            except UnavailableError as error:
                if time.monotonic() + pause_s > give_up_s:
                    raise shard._named(error) from error
            except BraidError as error:
                raise shard._named(error) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                shard._reconnect(target)
            except UnavailableError:
                continue
