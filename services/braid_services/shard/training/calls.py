"""The two training RPCs of a shard: messages in, messages out. Knows the wire and no maths."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from braid_rpc.errors import RequestCancelledError
from braid_rpc.v1 import shard_pb2
from braid_services.shard.training.backend import ShardTraining
from braid_services.shard.training.messages import put_outputs, put_timings, take_inputs, take_outputs
from braid_services.tensors import put_torch


class TrainingCalls:
    """``max_bytes`` bounds the tensors of one message; ``max_result_bytes`` what a span may give."""

    def __init__(self, training: ShardTraining, max_bytes: int, max_result_bytes: int) -> None:
        self._training = training
        self._max_bytes = max_bytes
        self._max_result_bytes = max_result_bytes

    def forward(self, request: shard_pb2.ForwardRequest, context: Any) -> shard_pb2.ForwardReply:
        """Raises: as `ShardTraining.forward`, and FrameError for a message that is not what it claims to be."""
        received_s = time.perf_counter()
        inputs = take_inputs(request.inputs, self._max_bytes)
        taken_s = time.perf_counter()
        result = self._training.forward(inputs, request.graph_id, self._max_result_bytes, _check(context))
        done_s = time.perf_counter()
        reply = shard_pb2.ForwardReply(model_hash=result.model_hash)
        put_outputs(result.outputs, reply.outputs)
        put_timings(result.timings, taken_s - received_s + time.perf_counter() - done_s, reply.timings)
        return reply

    def backward(self, request: shard_pb2.BackwardRequest, context: Any) -> shard_pb2.BackwardReply:
        """Raises: as `ShardTraining.backward`, and FrameError for a message that is not what it claims to be."""
        received_s = time.perf_counter()
        gradients = take_outputs(request.gradients, self._max_bytes, "gradients")
        inputs = take_inputs(request.inputs, self._max_bytes) if request.HasField("inputs") else None
        taken_s = time.perf_counter()
        result = self._training.backward(request.graph_id, gradients, inputs, _check(context))
        done_s = time.perf_counter()
        reply = shard_pb2.BackwardReply(model_hash=result.model_hash)
        if result.hidden is None:
            reply.is_gone = True
        else:
            put_torch(result.hidden, reply.hidden)
        put_timings(result.timings, taken_s - received_s + time.perf_counter() - done_s, reply.timings)
        return reply


def _check(context: Any) -> Callable[[], None]:
    """Raises once the caller has gone."""

    def check_wanted() -> None:
        if not context.is_active():
            raise RequestCancelledError("training call: its caller has gone")

    return check_wanted
