"""A request that was begun on another engine, brought to where it stood there. Knows no shards and no journals."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many

from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    Finished,
    ScoreResult,
    Started,
    TokenEvent,
)
from braid_orchestrator.engine.sessions import GeneratedSequence, Request, Sequence, Sink
from braid_orchestrator.engine.text import TextCodec
from braid_rpc.errors import BraidError


class Replay:
    """What had come of a request goes to its sink first, as soon as it has started again; then what follows."""

    def __init__(self, events: Many[Event], sink: Sink) -> None:
        self._sink = sink
        self._started = next((event for event in events if isinstance(event, Started)), None)
        self._past: list[Event] = [
            event for event in events if isinstance(event, TokenEvent | ChoiceFinished)
        ]

    def carry_on(self, sequences: Iterable[Sequence], codec: TextCodec) -> list[Sequence]:
        """Bring the request's sequences to where they stood; returns those that go on."""
        finished = {event.index for event in self._past if isinstance(event, ChoiceFinished)}
        running: list[Sequence] = []
        for sequence in sequences:
            if not isinstance(sequence, GeneratedSequence):
                raise TypeError("only what is generated can be carried on")
            end: ChoiceFinished | None = None
            for event in [e for e in self._past if isinstance(e, TokenEvent) and e.index == sequence.index]:
                end = sequence.replay(event, codec)
            if end is not None and sequence.index not in finished:
                self._past.append(end)  # the last that was written was the token that ended it
            if end is not None or sequence.index in finished:
                sequence.request.unfinished -= 1
                continue
            if self._started is not None:
                sequence.weights_version = self._started.weights_version
            running.append(sequence)
        return running

    def sink(self, item: Event | ScoreResult | BraidError) -> None:
        """For the engine."""
        self._sink(item)
        if isinstance(item, Started):
            for event in self._past:
                self._sink(event)

    def finish(self, request: Request) -> None:
        """Nothing was left to do but to say so."""
        version = "" if self._started is None else self._started.weights_version
        self.sink(Started(request.request_id, request.prompt_tokens, version))
        self._sink(Finished(request.prompt_tokens, request.completion_tokens, request.timings()))
