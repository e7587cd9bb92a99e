"""A shard's RPCs: messages in, messages out, one thread per stream. Knows the wire and no maths."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from braid_rpc.cards import TokenizerFile
from braid_rpc.channels import ENVELOPE_BYTES
from braid_rpc.errors import BraidError, InvalidRequestError
from braid_rpc.frames import frame_code
from braid_rpc.status import error_to_proto
from braid_rpc.steps import OpenSession, Segment, SpanStep
from braid_rpc.tensor import DTYPE_NAMES
from braid_rpc.unexpected import unexpected_error
from braid_rpc.v1 import shard_pb2, shard_pb2_grpc, tensor_pb2
from braid_services.frames import decode_frame, put_frame
from braid_services.shard.backend import ShardBackend
from braid_services.shard.stream import ShardStream
from braid_services.shard.training.calls import TrainingCalls
from braid_services.tensors import decode_torch, put_torch

logger = logging.getLogger(__name__)

_TOKEN_DTYPES = ("int32", "int64")


class ShardServicer(shard_pb2_grpc.ShardServicer):  # type: ignore[misc]
    """Serves one `ShardBackend`, which it does not own. Errors become statuses in `braid_services.serving`."""

    def __init__(self, backend: ShardBackend) -> None:
        self._backend = backend
        self._max_bytes = backend.config.max_message_bytes
        self._max_result_bytes = self._max_bytes - min(ENVELOPE_BYTES, self._max_bytes // 2)
        self._dtype = backend.card.dtype
        self._frames = backend.card.frames
        self._dtype_code = frame_code(self._dtype)
        self._width = backend.spans.width
        self._training = TrainingCalls(backend.training, self._max_bytes, self._max_result_bytes)

    def Describe(self, request: Any, context: Any) -> shard_pb2.ShardCard:  # noqa: N802
        """The shard's card, with the cache's present state."""
        return self._backend.card.to_proto()

    def FetchTokenizer(self, request: Any, context: Any) -> shard_pb2.TokenizerFile:  # noqa: N802
        """The whole tokenizer, so that a client can use it on its own."""
        card = self._backend.card
        return TokenizerFile(
            self._backend.tokenizer_json(), card.tokenizer_hash, card.eos_token_ids, self._backend.chat_format
        ).to_proto()

    def Tokenize(self, request: shard_pb2.TokenizeRequest, context: Any) -> shard_pb2.TokenizeReply:  # noqa: N802
        """Token ids with the characters that each stands for."""
        ids, offsets = self._backend.tokenize(request.text, add_special_tokens=request.add_special_tokens)
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        return shard_pb2.TokenizeReply(token_ids=ids, starts=starts, ends=ends)

    def Detokenize(self, request: shard_pb2.DetokenizeRequest, context: Any) -> shard_pb2.DetokenizeReply:  # noqa: N802
        """The text of token ids."""
        text = self._backend.detokenize(request.token_ids, keep_special_tokens=request.keep_special_tokens)
        return shard_pb2.DetokenizeReply(text=text)

    def Forward(self, request: shard_pb2.ForwardRequest, context: Any) -> shard_pb2.ForwardReply:  # noqa: N802
        """One span over whole sequences, for training."""
        return self._training.forward(request, context)

    def Backward(self, request: shard_pb2.BackwardRequest, context: Any) -> shard_pb2.BackwardReply:  # noqa: N802
        """The gradient of the states that entered it."""
        return self._training.backward(request, context)

    def Run(self, request_iterator: Iterator[Any], context: Any) -> Iterator[shard_pb2.ShardReply]:  # noqa: N802
        """One caller's sessions, for as long as the stream lasts. A refused request leaves the stream usable."""
        stream = self._backend.stream(self._max_result_bytes)
        try:
            for request in request_iterator:
                yield self._answer(stream, request)
        finally:
            # Reached when the client closes, hangs up or dies, and when the server stops.
            stream.end()

    def _answer(self, stream: ShardStream, request: shard_pb2.ShardRequest) -> shard_pb2.ShardReply:
        try:
            return self._dispatch(stream, request)
        except BraidError as error:
            logger.info("refused: %s", error, extra=self._where(request))
            return shard_pb2.ShardReply(id=request.id, error=error_to_proto(error))
        except Exception as error:  # noqa: BLE001 - answered; the stream goes on
            unexpected = unexpected_error(error, logger, "shard stream", self._where(request))
            return shard_pb2.ShardReply(id=request.id, error=error_to_proto(unexpected))

    def _where(self, request: shard_pb2.ShardRequest) -> dict[str, Any]:
        """What a log line is about."""
        op = request.WhichOneof("op")
        found: dict[str, Any] = {"shard": self._backend.card.name, "op": op}
        if op == "step":
            found["step_id"] = request.step.step_id
            found["sessions"] = [segment.session_id for segment in request.step.segments] or None
        elif op == "open":
            found["sessions"] = [session.session_id for session in request.open.sessions]
        elif op == "crop":
            found["sessions"] = [request.crop.session_id]
        return found

    def _dispatch(self, stream: ShardStream, request: shard_pb2.ShardRequest) -> shard_pb2.ShardReply:
        op = request.WhichOneof("op")
        if op == "step":
            return self._step(stream, request.id, request.step)
        if op == "open":
            sessions = [OpenSession(s.session_id, s.num_tokens, s.end_layer) for s in request.open.sessions]
            opened = shard_pb2.Opened(cache_bytes_free=stream.open(sessions))
            return shard_pb2.ShardReply(id=request.id, opened=opened)
        if op == "crop":
            cropped = shard_pb2.Cropped(
                cache_bytes_free=stream.crop(request.crop.session_id, request.crop.length)
            )
            return shard_pb2.ShardReply(id=request.id, cropped=cropped)
        if op == "close":
            closed = shard_pb2.Closed(cache_bytes_free=stream.close(request.close.session_ids))
            return shard_pb2.ShardReply(id=request.id, closed=closed)
        raise InvalidRequestError(
            f"request {request.id}: got no operation, expected open, step, crop or close"
        )

    def _step(self, stream: ShardStream, request_id: int, step: shard_pb2.Step) -> shard_pb2.ShardReply:
        received_s = time.perf_counter()
        span_step = SpanStep(
            step.step_id,
            step.start_layer,
            step.end_layer,
            step.final,
            segments=tuple(Segment(s.session_id, s.position, s.num_rows) for s in step.segments),
            token_ids=self._token_ids(step),
            logit_rows=tuple(step.logit_rows),
            hidden=self._states(step, "hidden", (self._dtype,)),
            update=self._states(step, "update", self._frames),
            unchanged=step.unchanged,
        )
        frames = self._wanted_frames(step)
        decoded_s = time.perf_counter()
        result = stream.step(span_step)
        stepped_s = time.perf_counter()
        # Written in place, field by field: nothing is copied twice.
        reply = shard_pb2.ShardReply()
        reply.id = request_id
        frame = reply.frame
        put_frame(result.hidden, frames, frame.hidden)
        if result.logits is not None:
            put_torch(result.logits, frame.logits)
        frame.cache_bytes_free = result.cache_bytes_free
        timings = reply.timings
        timings.compute_us = round(result.timings.compute_s * 1e6)
        timings.wait_us = round(result.timings.wait_s * 1e6)
        timings.serialize_us = round((decoded_s - received_s + time.perf_counter() - stepped_s) * 1e6)
        return reply

    def _token_ids(self, step: shard_pb2.Step) -> Tensor | None:
        if not step.HasField("token_ids"):
            return None
        return decode_torch(
            step.token_ids, dtypes=_TOKEN_DTYPES, shape=(None,), max_bytes=self._max_bytes, what="token_ids"
        )

    def _states(self, step: shard_pb2.Step, field: str, formats: tuple[str, ...]) -> Tensor | None:
        if not step.HasField(field):
            return None
        return decode_frame(
            getattr(step, field),
            formats=formats,
            shape=(None, self._width),
            max_bytes=self._max_bytes,
            what=field,
        )

    def _wanted_frames(self, step: shard_pb2.Step) -> str | None:
        """The format for the reply's states; None: as they are."""
        if step.frames in (tensor_pb2.DTYPE_UNSPECIFIED, self._dtype_code):
            return None
        name = DTYPE_NAMES.get(step.frames)
        if name not in self._frames:
            raise InvalidRequestError(
                f"step {step.step_id}: frames: got {name or step.frames}, expected one of {', '.join(self._frames)}"
            )
        return name
