"""Records of `braid_rpc.training` with torch tensors as messages and back. Knows the wire and no maths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from braid_rpc.steps import Timings
from braid_rpc.tensor import FLOAT_DTYPES
from braid_rpc.training import HeadInputs, SpanInputs, SpanOutputs
from braid_rpc.v1 import shard_pb2, tensor_pb2
from braid_services.tensors import decode_torch, put_torch

_ID_DTYPES = ("int32", "int64")
_NUM_AXES = {"hidden": 2, "target_logprobs": 1, "features": 2, "logits": 2}


def put_inputs(inputs: SpanInputs[Tensor], message: shard_pb2.SpanInputs) -> None:
    """Write a span's inputs into an empty message."""
    message.start_layer = inputs.start_layer
    message.end_layer = inputs.end_layer
    message.lengths.extend(inputs.lengths)
    put_torch(inputs.token_ids, message.token_ids)
    if inputs.hidden is not None:
        put_torch(inputs.hidden, message.hidden)
    head = inputs.head
    if head is None:
        return
    message.head.SetInParent()
    if head.logit_rows is not None:
        put_torch(head.logit_rows, message.head.logit_rows)
    if head.targets is not None:
        put_torch(head.targets, message.head.targets)
    message.head.vocab_size = head.vocab_size
    message.head.want_features = head.want_features
    message.head.want_logits = head.want_logits


def take_inputs(message: shard_pb2.SpanInputs, max_bytes: int) -> SpanInputs[Tensor]:
    """A span's inputs, checked as tensors only. Raises: FrameError, ShapeMismatchError."""

    def ids(of: Any, name: str, dtypes: Sequence[str]) -> Tensor:
        return decode_torch(
            getattr(of, name), dtypes=dtypes, shape=(None,), max_bytes=max_bytes, what=f"inputs.{name}"
        )

    hidden = None
    if message.HasField("hidden"):
        hidden = decode_torch(
            message.hidden,
            dtypes=FLOAT_DTYPES,
            shape=(None, None),
            max_bytes=max_bytes,
            what="inputs.hidden",
        )
    head = None
    if message.HasField("head"):
        own = message.head
        head = HeadInputs(
            ids(own, "logit_rows", ("int64",)) if own.HasField("logit_rows") else None,
            ids(own, "targets", ("int64",)) if own.HasField("targets") else None,
            own.vocab_size,
            own.want_features,
            own.want_logits,
        )
    return SpanInputs(
        message.start_layer,
        message.end_layer,
        tuple(message.lengths),
        ids(message, "token_ids", _ID_DTYPES),
        hidden,
        head,
    )


def put_outputs(outputs: SpanOutputs[Tensor], message: shard_pb2.SpanOutputs) -> None:
    """Write what a span gave, or gradients of it, into an empty message."""
    for name, value in outputs.items():
        put_torch(value, getattr(message, name))


def take_outputs(message: shard_pb2.SpanOutputs, max_bytes: int, what: str) -> SpanOutputs[Tensor]:
    """What a span gave, or gradients of it. Raises: FrameError, ShapeMismatchError."""
    return SpanOutputs(
        **{
            name: decode_torch(
                getattr(message, name),
                dtypes=FLOAT_DTYPES,
                shape=(None,) * num_axes,
                max_bytes=max_bytes,
                what=f"{what}.{name}",
            )
            for name, num_axes in _NUM_AXES.items()
            if message.HasField(name)
        }
    )


def put_timings(timings: Timings, serialize_s: float, message: tensor_pb2.StepTimings) -> None:
    """Write where the time went into an empty message."""
    message.compute_us = round(timings.compute_s * 1e6)
    message.wait_us = round(timings.wait_s * 1e6)
    message.serialize_us = round(serialize_s * 1e6)
