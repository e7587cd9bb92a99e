"""Small servicers that speak the wire and compute nothing worth computing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from braid_rpc.errors import (
    BraidError,
    CacheFullError,
    ShapeMismatchError,
    StepOrderError,
    UnknownSessionError,
)
from braid_rpc.status import error_to_proto
from braid_rpc.tensor import decode_tensor, encode_tensor
from braid_rpc.v1 import shard_pb2, shard_pb2_grpc, tensor_pb2
from braid_services.serving import RunningServer, start_server

NUM_LAYERS, WIDTH, VOCAB = 6, 4, 11

_numbers = itertools.count()


class FakeShard(shard_pb2_grpc.ShardServicer):
    """A shard whose layer adds one to every state: what comes out says which layers ran.

    The embedding of a token is its id, everywhere; the logits of a row are its first state plus the index.
    """

    def __init__(self, protocol_version: int = 1, max_tokens: int = 100) -> None:
        self.protocol_version = protocol_version
        self.max_tokens = max_tokens
        self.sessions: dict[str, int] = {}
        self.stream_ended = threading.Event()
        self.hold = threading.Event()
        self.hold.set()

    def Describe(self, request: Any, context: Any) -> shard_pb2.ShardCard:
        return shard_pb2.ShardCard(
            protocol_version=self.protocol_version,
            name="fake",
            model_id="fake/model",
            family="fake",
            num_layers=NUM_LAYERS,
            width=WIDTH,
            vocab_size=VOCAB,
            dtype="float32",
            context_length=self.max_tokens,
            eos_token_ids=[0],
        )

    def FetchTokenizer(self, request: Any, context: Any) -> shard_pb2.TokenizerFile:
        return shard_pb2.TokenizerFile(tokenizer_json="{}", hash="h", eos_token_ids=[0])

    def Tokenize(self, request: shard_pb2.TokenizeRequest, context: Any) -> shard_pb2.TokenizeReply:
        size = len(request.text)
        return shard_pb2.TokenizeReply(
            token_ids=[ord(c) % VOCAB for c in request.text], starts=range(size), ends=range(1, size + 1)
        )

    def Detokenize(self, request: shard_pb2.DetokenizeRequest, context: Any) -> shard_pb2.DetokenizeReply:
        return shard_pb2.DetokenizeReply(text="".join(chr(65 + i) for i in request.token_ids))

    def Run(self, requests: Iterator[shard_pb2.ShardRequest], context: Any) -> Iterator[shard_pb2.ShardReply]:
        self.stream_ended.clear()
        batch: dict[str, Any] = {}
        try:
            for request in requests:
                self.hold.wait()
                try:
                    reply = self._answer(request, batch)
                except BraidError as error:
                    reply = shard_pb2.ShardReply(error=error_to_proto(error))
                reply.id = request.id
                yield reply
        finally:
            self.sessions.clear()
            self.stream_ended.set()

    def _answer(self, request: shard_pb2.ShardRequest, batch: dict[str, Any]) -> shard_pb2.ShardReply:
        kind = request.WhichOneof("op")
        if kind == "open":
            for session in request.open.sessions:
                if session.num_tokens > self.max_tokens:
                    raise CacheFullError(
                        f"got {session.num_tokens} tokens, expected at most {self.max_tokens}",
                        retry_after_s=2.0,
                    )
            self.sessions.update({session.session_id: 0 for session in request.open.sessions})
            return shard_pb2.ShardReply(opened=shard_pb2.Opened())
        if kind == "crop":
            if request.crop.session_id not in self.sessions:
                raise UnknownSessionError(f"got session {request.crop.session_id!r}")
            self.sessions[request.crop.session_id] = request.crop.length
            return shard_pb2.ShardReply(cropped=shard_pb2.Cropped())
        if kind == "close":
            for session_id in request.close.session_ids:
                self.sessions.pop(session_id, None)
            return shard_pb2.ShardReply(closed=shard_pb2.Closed())
        return shard_pb2.ShardReply(
            frame=self._step(request.step, batch),
            timings=tensor_pb2.StepTimings(compute_us=1500, wait_us=20, serialize_us=30),
        )

    def _step(self, step: shard_pb2.Step, batch: dict[str, Any]) -> shard_pb2.Frame:
        if step.HasField("token_ids"):
            for segment in step.segments:
                if segment.session_id not in self.sessions:
                    raise UnknownSessionError(f"got session {segment.session_id!r}")
                if segment.position != self.sessions[segment.session_id]:
                    raise StepOrderError(f"got position {segment.position}")
            ids = decode_tensor(step.token_ids, dtypes={"int64", "int32"}, shape=(None,))
            hidden = np.repeat(ids.astype(np.float32)[:, None], WIDTH, axis=1)
            batch.update(layer=0, rows=list(step.logit_rows), segments=list(step.segments))
        else:
            if step.start_layer != batch.get("layer"):
                raise StepOrderError(f"got layer {step.start_layer}, expected {batch.get('layer')}")
            hidden = decode_tensor(step.hidden, shape=(None, WIDTH))
            if hidden.shape[1] != WIDTH:
                raise ShapeMismatchError("unreachable")
        out = np.asarray(hidden, dtype=np.float32) + (step.end_layer - step.start_layer)
        batch["layer"] = step.end_layer
        if step.final:
            for segment in batch["segments"]:
                self.sessions[segment.session_id] += segment.num_rows
        if step.end_layer < NUM_LAYERS:
            return shard_pb2.Frame(hidden=encode_tensor(out))
        head = out[batch["rows"]]
        logits = head[:, :1] + np.arange(VOCAB, dtype=np.float32)
        return shard_pb2.Frame(hidden=encode_tensor(head), logits=encode_tensor(logits))


@contextmanager
def serving(servicer: object, folder: Path, **options: Any) -> Iterator[RunningServer]:
    """``servicer`` behind a unix socket in ``folder`` and a TCP port, both its own."""
    socket = folder / f"{next(_numbers)}.sock"
    with start_server([servicer], [f"unix:{socket}", "127.0.0.1:0"], **options) as server:
        yield server
