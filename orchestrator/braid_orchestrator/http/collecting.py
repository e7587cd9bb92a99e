"""Puts a request's events together again into whole choices. Knows no API's shapes."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from braid_orchestrator.engine.requests import ChoiceFinished, Event, Finished, Started, TokenEvent
from braid_orchestrator.serving.port import as_generator
from braid_rpc.errors import BraidError
from braid_rpc.stability import ChoiceStability


@dataclass
class CollectedChoice:
    """One choice so far. ``tail`` is the text that was held back until the end."""

    tokens: list[TokenEvent] = field(default_factory=list)
    tail: str = ""
    finish_reason: str = ""
    stop_reason: str | int | None = None
    stability: ChoiceStability | None = None

    @property
    def text(self) -> str:
        """All text that became certain."""
        return "".join(token.text for token in self.tokens) + self.tail

    def mean_weights(self) -> dict[str, float]:
        """Each shard's mixing weight, averaged over the tokens."""
        totals: dict[str, float] = {}
        for token in self.tokens:
            for shard, weight in token.weights.items():
                totals[shard] = totals.get(shard, 0.0) + weight
        return {shard: total / len(self.tokens) for shard, total in totals.items()}


@dataclass
class Collected:
    """A whole request."""

    started: Started
    finished: Finished
    choices: list[CollectedChoice]


class Collector:
    """Takes a request's events in their order."""

    def __init__(self, num_choices: int) -> None:
        self._choices = [CollectedChoice() for _ in range(num_choices)]
        self._started: Started | None = None
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        """One more event."""
        match event:
            case Started():
                self._started = event
            case TokenEvent():
                self._choices[event.index].tokens.append(event)
            case ChoiceFinished():
                choice = self._choices[event.index]
                choice.tail, choice.finish_reason = event.text, event.finish_reason
                choice.stop_reason, choice.stability = event.stop_reason, event.stability
            case Finished():
                self._finished = event

    def result(self) -> Collected:
        """All together. Raises: BraidError if the events broke off."""
        if self._started is None or self._finished is None:
            raise BraidError("the braid's events ended before the request was finished")
        return Collected(self._started, self._finished, self._choices)


async def collect(events: AsyncIterator[Event], num_choices: int) -> Collected:
    """Consume all events. Raises: what the braid raises."""
    collector = Collector(num_choices)
    async with aclosing(as_generator(events)) as source:
        async for event in source:
            collector.add(event)
    return collector.result()


def finite(value: float | None) -> float | None:
    """A number that JSON can carry; minus infinity becomes -9999, as elsewhere in the field."""
    if value is None or math.isfinite(value):
        return value
    return None if math.isnan(value) else math.copysign(9999.0, value)
