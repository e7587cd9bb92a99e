"""A `Braid` service that counts: its n-th token is the n-th word, and every request leaves a record."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from braid_rpc.errors import BraidError, InvalidRequestError, QueueFullError, UnavailableError
from braid_rpc.v1 import braid_pb2, braid_pb2_grpc


class FakeBraid(braid_pb2_grpc.BraidServicer):
    """Fails the first ``failures`` calls, before or (``fail_after``) after that many events."""

    def __init__(
        self,
        failures: int = 0,
        error: BraidError | None = None,
        fail_after: int = 0,
        protocol_version: int = 1,
    ) -> None:
        self.failures = failures
        self.error = error or UnavailableError("a shard is being restarted")
        self.fail_after = fail_after
        self.protocol_version = protocol_version
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.cancelled = threading.Event()
        self.endless = False

    def _take(self, request: Any, context: Any) -> bool:
        self.requests.append(type(request).FromString(request.SerializeToString()))
        self.metadata.append(dict(context.invocation_metadata()))
        return len(self.requests) <= self.failures

    def Generate(self, request: braid_pb2.GenerateRequest, context: Any) -> Iterator[braid_pb2.GenerateEvent]:
        fails = self._take(request, context)
        if not context.add_callback(self.cancelled.set):
            self.cancelled.set()
        events = self._events(request, context)
        for _ in range(self.fail_after if fails else 0):
            yield next(events)
        if fails:
            # As some proxies do: an event without content goes before the status of an error.
            yield braid_pb2.GenerateEvent()
            raise self.error
        yield from events

    def _events(self, request: braid_pb2.GenerateRequest, context: Any) -> Iterator[braid_pb2.GenerateEvent]:
        n, num_tokens = request.n or 1, request.sampling.max_tokens or 3
        started = braid_pb2.Started(
            request_id=request.request_id, model="fake", prompt_tokens=2, weights_version="v1"
        )
        yield braid_pb2.GenerateEvent(started=started)
        position = 0
        while self.endless or position < num_tokens:
            for index in range(n):
                token = braid_pb2.Token(
                    index=index,
                    token_id=position,
                    text=f"{position}.{index} ",
                    weights={"a": 1.0 if position % 2 else 0.5, "b": 0.0 if position % 2 else 0.5},
                )
                if request.sampling.HasField("logprobs"):
                    token.logprob = -1.0
                    token.top_logprobs.add(token_id=position, token="x", logprob=-1.0)
                yield braid_pb2.GenerateEvent(token=token)
            position += 1
            if not context.is_active():
                return
        for index in range(n):
            choice = braid_pb2.ChoiceFinished(index=index, finish_reason="length", text="end")
            yield braid_pb2.GenerateEvent(choice_finished=choice)
        timings = braid_pb2.Timings(queue_s=0.1, time_to_first_token_s=0.2, total_s=0.3)
        finished = braid_pb2.Finished(prompt_tokens=2, completion_tokens=n * num_tokens, timings=timings)
        yield braid_pb2.GenerateEvent(finished=finished)

    def Score(self, request: braid_pb2.ScoreRequest, context: Any) -> braid_pb2.ScoreReply:
        if self._take(request, context):
            raise self.error
        return braid_pb2.ScoreReply(token_ids=[1, 2], logprobs=[0.0, -2.0], tokens=["a", "b"], num_bytes=2)

    def Describe(self, request: Any, context: Any) -> braid_pb2.BraidCard:
        if self._take(request, context):
            raise self.error
        return braid_pb2.BraidCard(
            protocol_version=self.protocol_version,
            name="fake",
            anchor="a",
            shards=[braid_pb2.BraidShard(name="a", num_layers=3, tokenizer_hash="t")],
            points=[braid_pb2.BraidPoint(name="p", strategy="mlp", injection="residual", layers=[2])],
            readout="gate",
            weights_version="v1",
            context_length=64,
        )

    def Cancel(self, request: braid_pb2.CancelRequest, context: Any) -> braid_pb2.CancelReply:
        self._take(request, context)
        return braid_pb2.CancelReply(cancelled=request.request_id == "known")


QUEUE_FULL = QueueFullError("got 257 waiting requests, expected at most 256", retry_after_s=3.0)
BAD_REQUEST = InvalidRequestError("temperature: got -1.0, expected between 0 (greedy) and 100")
