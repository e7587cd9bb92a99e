"""How the records of `steps` become requests to the `Shard` service, and its replies records again.

Knows no array library: whoever calls says how an array is encoded and decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from braid_rpc.errors import FrameError
from braid_rpc.steps import OpenSession, Segment, SpanResult, SpanStep, Timings
from braid_rpc.tensor import FLOAT_DTYPES
from braid_rpc.v1 import shard_pb2, tensor_pb2

Encode = Callable[[Any], tensor_pb2.Tensor]
# Called as decode(message, dtypes=…, shape=…, max_bytes=…, what=…): `decode_tensor` or its like.
Decode = Callable[..., Any]


def open_request(sessions: Iterable[OpenSession]) -> shard_pb2.ShardRequest:
    """The request to open ``sessions``, all or none."""
    messages = [
        shard_pb2.OpenSession(session_id=s.session_id, num_tokens=s.num_tokens, end_layer=s.end_layer)
        for s in sessions
    ]
    return shard_pb2.ShardRequest(open=shard_pb2.OpenSessions(sessions=messages))


def crop_request(session_id: str, length: int) -> shard_pb2.ShardRequest:
    """The request to forget what a session has cached from ``length`` on."""
    return shard_pb2.ShardRequest(crop=shard_pb2.Crop(session_id=session_id, length=length))


def close_request(session_ids: Iterable[str]) -> shard_pb2.ShardRequest:
    """The request to free the sessions' caches."""
    return shard_pb2.ShardRequest(close=shard_pb2.CloseSessions(session_ids=session_ids))


def segments_to_proto(segments: Iterable[Segment]) -> list[tensor_pb2.Segment]:
    """The messages that say the same."""
    return [
        tensor_pb2.Segment(session_id=s.session_id, position=s.position, num_rows=s.num_rows)
        for s in segments
    ]


def step_request(step: SpanStep[Any], encode: Encode) -> shard_pb2.ShardRequest:
    """The request to run one span."""
    message = shard_pb2.Step(
        step_id=step.step_id, start_layer=step.start_layer, end_layer=step.end_layer, final=step.final
    )
    if step.token_ids is not None:
        message.token_ids.CopyFrom(encode(step.token_ids))
        message.segments.extend(segments_to_proto(step.segments))
        message.logit_rows.extend(step.logit_rows)
    if step.hidden is not None:
        message.hidden.CopyFrom(encode(step.hidden))
    if step.update is not None:
        message.update.CopyFrom(encode(step.update))
    if step.unchanged:
        message.unchanged = True
    return shard_pb2.ShardRequest(step=message)


def result_from_proto(
    reply: shard_pb2.ShardReply, decode: Decode, *, width: int, vocab_size: int, max_bytes: int
) -> SpanResult[Any]:
    """What a span gave. Raises: FrameError, ShapeMismatchError."""
    if reply.WhichOneof("result") != "frame":
        raise FrameError(f"reply {reply.id}: got {reply.WhichOneof('result')}, expected a frame")
    frame = reply.frame
    hidden = decode(
        frame.hidden, dtypes=FLOAT_DTYPES, shape=(None, width), max_bytes=max_bytes, what="hidden"
    )
    logits = None
    if frame.HasField("logits"):
        num_rows = frame.hidden.shape[0]
        logits = decode(
            frame.logits,
            dtypes=FLOAT_DTYPES,
            shape=(num_rows, vocab_size),
            max_bytes=max_bytes,
            what="logits",
        )
    return SpanResult(hidden, logits, timings_from_proto(reply.timings), frame.cache_bytes_free)


def timings_from_proto(message: tensor_pb2.StepTimings) -> Timings:
    """Microseconds on the wire, seconds here."""
    return Timings(message.compute_us * 1e-6, message.wait_us * 1e-6, message.serialize_us * 1e-6)
