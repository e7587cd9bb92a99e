"""The connection to a shard that training began with: where it is, and that it is still the same one.

Whoever is found there is asked what it is on the very connection that calls then go over. Knows neither spans nor how
often a call is repeated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from braid_rpc.calls import CallOptions, call_unary
from braid_rpc.cards import ShardCard, TokenizerFile
from braid_rpc.channels import make_channel
from braid_rpc.errors import UnavailableError, WeightMismatchError
from braid_rpc.handshake import check_protocol
from braid_rpc.v1 import shard_pb2, shard_pb2_grpc


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a call, under way since ``began_s``, at ``target``."""

    target: str
    future: Any
    channel: grpc.Channel
    began_s: float = field(default_factory=time.monotonic)


class ShardConnection:
    """To one replica of a shard at a time. Safe for threads."""

    def __init__(self, resolve: Callable[[], str], max_message_bytes: int) -> None:
        """``resolve`` says where the shard is; it is asked again after `lose`.

        Raises: UnavailableError, ProtocolVersionError.
        """
        self._resolve = resolve
        self._max_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._is_lost = False
        self._target = resolve()
        self._channel = make_channel(self._target, max_message_bytes)
        try:
            self.card = self._describe()
            request = shard_pb2.FetchTokenizerRequest()
            reply = call_unary(self._stub.FetchTokenizer, request, CallOptions(self._target))
        except BaseException:
            self._channel.close()
            raise
        self.tokenizer_json = TokenizerFile.from_proto(reply).tokenizer_json

    @property
    def target(self) -> str:
        """Where the present connection leads, or the last one that was."""
        return self._target

    def start(self, method: str, request: Any) -> Attempt:
        """Begin a call; where the connection was lost, on a new one. It lasts for as long as its connection does.

        Raises: UnavailableError; WeightMismatchError, ProtocolVersionError if another shard is found there.
        """
        with self._lock:
            if self._is_lost:
                self._reconnect()
            call = getattr(self._stub, method)
            try:
                return Attempt(self._target, call.future(request), self._channel)
            except ValueError as error:  # the channel is closed
                raise UnavailableError(f"{self._target}: {error}") from error

    def lose(self, attempt: Attempt) -> None:
        """An attempt has failed: the next one takes a new connection, unless another call has done so already."""
        with self._lock:
            self._is_lost = self._is_lost or attempt.channel is self._channel

    def check(self) -> None:
        """Ask who is there: a connection that breaks between two calls is made anew unnoticed.

        Raises: WeightMismatchError if it isn't who was there at first; UnavailableError, DeadlineError.
        """
        with self._lock:
            self._check()

    def check_model(self, model_hash: str) -> None:
        """Whether an answer is of the model that was there at first. Raises: WeightMismatchError."""
        if model_hash != self.card.model_hash:
            raise self._mismatch(f"model {model_hash} instead of {self.card.model_hash}")

    def close(self) -> None:
        """Release everything; calls under way fail."""
        self._channel.close()

    @property
    def _stub(self) -> Any:
        return shard_pb2_grpc.ShardStub(self._channel)

    def _reconnect(self) -> None:
        with suppress(UnavailableError):  # nobody knows: perhaps it is where it was
            self._target = self._resolve()
        self._channel.close()
        self._channel = make_channel(self._target, self._max_bytes)
        self._check()
        self._is_lost = False

    def _check(self) -> None:
        difference = self._describe().difference_from(self.card)
        if difference:
            raise self._mismatch(difference)

    def _describe(self) -> ShardCard:
        request = shard_pb2.DescribeShardRequest()
        message = call_unary(self._stub.Describe, request, CallOptions(self._target))
        check_protocol(self._target, message.protocol_version)
        return ShardCard.from_proto(message)

    def _mismatch(self, difference: str) -> WeightMismatchError:
        return WeightMismatchError(f"{self._target}: got {difference}, with which training began")
