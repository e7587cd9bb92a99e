"""One base model, from a program of one's own: tokens in, hidden states out and in again, logits out.

    client = ShardClient("127.0.0.1:7001")
    ids = client.tokenize("def add(a, b):").token_ids
    with client.open(num_tokens=64) as session, session.step(ids) as step:
        hidden_TD = step.run_to(4)
        logits_RV = step.finish(hidden_TD * 1.1)

Arrays are numpy arrays, bfloat16 through ml_dtypes. Shapes: T rows of a step, R rows whose logits are wanted,
D the shard's width, V its vocabulary.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np

from braid_rpc.calls import DEFAULT_TIMEOUT_S, CallOptions, call_unary
from braid_rpc.cards import ShardCard, TokenizerFile
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES, make_channel
from braid_rpc.errors import InvalidRequestError, ShapeMismatchError, StepOrderError
from braid_rpc.handshake import check_protocol
from braid_rpc.shard_messages import (
    close_request,
    crop_request,
    open_request,
    result_from_proto,
    step_request,
)
from braid_rpc.steps import OpenSession, Segment, SpanResult, SpanStep
from braid_rpc.stream_client import ShardStreamClient
from braid_rpc.tensor import AnyArray, decode_tensor, encode_tensor
from braid_rpc.v1 import shard_pb2, shard_pb2_grpc


@dataclass(frozen=True, slots=True)
class Tokens:
    """``starts[i]`` and ``ends[i]`` are the character offsets of token i in the text."""

    token_ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


class ShardClient:
    """A shard at ``target`` (``host:port`` or ``unix:/path``). Connects with its first call; safe for threads.

    ``timeout_s`` bounds each call and each step. Calls that change nothing are repeated ``retries`` times while
    the shard doesn't answer.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = 2,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._max_message_bytes = max_message_bytes
        self._options = CallOptions(target, timeout_s, retries)
        self._channel = make_channel(target, max_message_bytes)
        self._stub = shard_pb2_grpc.ShardStub(self._channel)
        self._card: ShardCard | None = None

    def describe(self) -> ShardCard:
        """What the shard says about itself now. Raises: ProtocolVersionError, naming both versions."""
        message = call_unary(self._stub.Describe, shard_pb2.DescribeShardRequest(), self._options)
        check_protocol(self.target, message.protocol_version)
        self._card = ShardCard.from_proto(message)
        return self._card

    @property
    def card(self) -> ShardCard:
        """The card as first seen; asks for it if need be."""
        return self._card or self.describe()

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> Tokens:
        """The text's tokens with their character offsets."""
        request = shard_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        reply = call_unary(self._stub.Tokenize, request, self._options)
        return Tokens(tuple(reply.token_ids), tuple(reply.starts), tuple(reply.ends))

    def detokenize(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        """The text of some tokens."""
        request = shard_pb2.DetokenizeRequest(token_ids=token_ids, keep_special_tokens=keep_special_tokens)
        return str(call_unary(self._stub.Detokenize, request, self._options).text)

    def tokenizer_file(self) -> TokenizerFile:
        """The whole tokenizer, and how its model expects a conversation."""
        request = shard_pb2.FetchTokenizerRequest()
        return TokenizerFile.from_proto(call_unary(self._stub.FetchTokenizer, request, self._options))

    def tokenizer_json(self) -> str:
        """The tokenizer in the format of the `tokenizers` library."""
        return self.tokenizer_file().tokenizer_json

    def stream(self) -> ShardStream:
        """A stream for packed batches of several sessions; it frees them when it is closed."""
        return ShardStream(self.target, self.card, self.timeout_s, self._max_message_bytes)

    def open(self, num_tokens: int = 0, *, session_id: str = "", end_layer: int = 0) -> ShardSession:
        """Open one session with room for ``num_tokens`` tokens now, on a stream of its own.

        Layers from ``end_layer`` on are never run for it, so its steps end there, by ``run_to(end_layer,
        final=True)``; 0: all are run.
        Raises: InvalidRequestError for an end layer out of range, CacheFullError if the shard has no room,
        ContextLengthError.
        """
        stream = self.stream()
        name = session_id or uuid.uuid4().hex
        try:
            stream.open([OpenSession(name, num_tokens, end_layer)])
        except BaseException:
            stream.end()
            raise
        return ShardSession(stream, name)

    def close(self) -> None:
        """Close the connection. Sessions have connections of their own and go on."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ShardStream:
    """Packed batches over one stream: the records of `braid_rpc.steps` with numpy arrays. Not for two threads.

    Every method raises what the shard raised, UnavailableError if it is gone, DeadlineError if it takes longer
    than the client's timeout.
    """

    def __init__(self, target: str, card: ShardCard, timeout_s: float, max_message_bytes: int) -> None:
        self.card = card
        self._timeout_s = timeout_s
        self._max_bytes = max_message_bytes
        self._client = ShardStreamClient(
            target, max_message_bytes=max_message_bytes, send_timeout_s=timeout_s
        )
        self._last_step_id = 0

    def next_step_id(self) -> int:
        """A step id larger than all before, for a new batch."""
        self._last_step_id += 1
        return self._last_step_id

    def open(self, sessions: Sequence[OpenSession]) -> int:
        """Open all or none; returns the bytes still free. Raises: CacheFullError, ContextLengthError."""
        return int(self._client.call(open_request(sessions), self._timeout_s).opened.cache_bytes_free)

    def step(self, step: SpanStep[AnyArray]) -> SpanResult[AnyArray]:
        """Run one span and wait for its states."""
        self._last_step_id = max(self._last_step_id, step.step_id)
        reply = self._client.call(step_request(step, encode_tensor), self._timeout_s)
        return result_from_proto(
            reply,
            decode_tensor,
            width=self.card.width,
            vocab_size=self.card.vocab_size,
            max_bytes=self._max_bytes,
        )

    def crop(self, session_id: str, length: int) -> None:
        """Forget cached positions from ``length`` on."""
        self._client.call(crop_request(session_id, length), self._timeout_s)

    def close(self, session_ids: Sequence[str]) -> None:
        """Free the sessions' caches. Unknown ids are passed over."""
        self._client.call(close_request(session_ids), self._timeout_s)

    def end(self) -> None:
        """End the stream, which frees everything that was opened on it."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class ShardSession:
    """One sequence on one shard. ``length`` tokens are cached. Not for two threads; closing frees the cache."""

    def __init__(self, stream: ShardStream, session_id: str) -> None:
        self.session_id = session_id
        self.length = 0
        self._stream = stream

    @property
    def card(self) -> ShardCard:
        """The shard's card."""
        return self._stream.card

    def step(
        self, token_ids: Sequence[int] | AnyArray, *, logits: Literal["last", "all"] | Sequence[int] = "last"
    ) -> SessionStep:
        """Begin a batch of T further tokens. Nothing is cached for them before the step is finished.

        Args:
            logits: the rows whose logits are wanted: the last one, all, or given indices in [0, T).

        Raises: ShapeMismatchError, InvalidRequestError.
        """
        ids_T = np.asarray(token_ids, dtype=np.int64)
        if ids_T.ndim != 1 or ids_T.size == 0:
            raise ShapeMismatchError(f"token_ids: got shape {ids_T.shape}, expected (T,) with T at least 1")
        num_rows = int(ids_T.size)
        if logits == "last":
            rows: tuple[int, ...] = (num_rows - 1,)
        elif logits == "all":
            rows = tuple(range(num_rows))
        elif isinstance(logits, str):
            raise InvalidRequestError(f"logits: got {logits!r}, expected 'last', 'all' or a list of rows")
        else:
            rows = tuple(int(row) for row in logits)
            if any(not 0 <= row < num_rows for row in rows):
                raise InvalidRequestError(f"logits: got rows {list(rows)}, expected each in [0, {num_rows})")
        return SessionStep(self, self._stream, ids_T, rows)

    def feed(
        self, token_ids: Sequence[int] | AnyArray, *, logits: Literal["last", "all"] | Sequence[int] = "last"
    ) -> AnyArray:
        """Run T tokens through all layers at once; returns the logits (R, V) of the rows wanted."""
        return self.step(token_ids, logits=logits).finish()

    def crop(self, length: int) -> None:
        """Forget the tokens from ``length`` on. Raises: InvalidRequestError if there are fewer."""
        if not 0 <= length <= self.length:
            raise InvalidRequestError(f"crop: got length {length}, expected between 0 and {self.length}")
        self._stream.crop(self.session_id, length)
        self.length = length

    def close(self) -> None:
        """Free the cache. May be called more than once."""
        self._stream.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SessionStep:
    """T tokens on their way through a shard's layers, which are run as far as asked.

    A step that is left before `finish` (or before a `run_to` with ``final``) leaves no trace on the shard.
    """

    def __init__(
        self, session: ShardSession, stream: ShardStream, ids_T: AnyArray, rows: tuple[int, ...]
    ) -> None:
        self.layer = 0
        self._session = session
        self._stream = stream
        self._ids_T = ids_T
        self._rows = rows
        self._step_id = stream.next_step_id()
        self._has_begun = False
        self._is_over = False
        self._hidden_TD: AnyArray | None = None

    def run_to(self, layer: int, hidden_TD: AnyArray | None = None, *, final: bool = False) -> AnyArray:
        """Run the layers up to, not including, ``layer``; returns the states (T, D) that enter it.

        Args:
            hidden_TD: what goes into the layers instead of the states that `run_to` gave last.
            final: cache the tokens although later layers are never run for them.

        Raises: StepOrderError, ShapeMismatchError, and what the shard raises.
        """
        last = self._session.card.num_layers
        if not self.layer <= layer < last:
            raise StepOrderError(f"run_to: got layer {layer}, expected in [{self.layer}, {last})")
        return self._run(layer, hidden_TD, final).hidden

    def finish(self, hidden_TD: AnyArray | None = None) -> AnyArray:
        """Run the remaining layers and the head; returns the logits (R, V) of the rows wanted.

        Raises: StepOrderError, ShapeMismatchError, and what the shard raises.
        """
        result = self._run(self._session.card.num_layers, hidden_TD, final=True)
        if result.logits is None:
            return np.zeros((0, self._session.card.vocab_size), np.float32)
        return result.logits

    def _run(self, end_layer: int, hidden_TD: AnyArray | None, final: bool) -> SpanResult[AnyArray]:
        if self._is_over:
            raise StepOrderError("step: got another span, expected none after the step was finished or left")
        num_rows, width = len(self._ids_T), self._session.card.width
        if hidden_TD is None:
            hidden_TD = self._hidden_TD
        elif not self._has_begun:
            raise StepOrderError(
                "step: got states before the first span, expected the embedding to come first"
            )
        elif hidden_TD.shape != (num_rows, width):
            raise ShapeMismatchError(f"hidden: got shape {hidden_TD.shape}, expected ({num_rows}, {width})")
        segment = Segment(self._session.session_id, self._session.length, num_rows)
        if self._has_begun:
            step = SpanStep(self._step_id, self.layer, end_layer, final, hidden=hidden_TD)
        else:
            step = SpanStep(
                self._step_id, 0, end_layer, final, (segment,), token_ids=self._ids_T, logit_rows=self._rows
            )
        result = self._stream.step(step)
        self._has_begun, self.layer, self._hidden_TD = True, end_layer, result.hidden
        if final:
            self._is_over = True
            self._session.length += num_rows
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
