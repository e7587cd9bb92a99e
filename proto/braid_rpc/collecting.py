"""How the events of one request become one answer. Knows no messages."""

from __future__ import annotations

from collections.abc import Iterable

from braid_rpc.completions import Choice, ChoiceFinished, Completion, Event, Finished, Started, Token
from braid_rpc.errors import UnavailableError


class CompletionBuilder:
    """Puts a `Completion` together from the events of one request."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._tokens: dict[int, list[Token]] = {}
        self._endings: dict[int, ChoiceFinished] = {}

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Token():
                self._tokens.setdefault(event.index, []).append(event)
            case ChoiceFinished():
                self._endings[event.index] = event
            case Started():
                self._started = event
            case Finished():
                self._finished = event

    def build(self) -> Completion:
        """The whole. Raises: UnavailableError if the events broke off before the last."""
        if self._started is None or self._finished is None:
            raise UnavailableError(
                "generate: the server's events ended early, expected 'finished' as the last"
            )
        return Completion(
            self._started.request_id,
            self._started.model,
            self._started.weights_version,
            tuple(self._choice(index) for index in sorted(self._endings)),
            self._finished.prompt_tokens,
            self._finished.completion_tokens,
            self._finished.timings,
            self._started.braided,
            self._started.answered_by,
        )

    def _choice(self, index: int) -> Choice:
        tokens, ending = tuple(self._tokens.get(index, ())), self._endings[index]
        text = "".join(token.text for token in tokens) + ending.text
        return Choice(index, text, tokens, ending.finish_reason, ending.stop_reason, ending.stability)


def collect(events: Iterable[Event]) -> Completion:
    """The completion that all events of one request make up. Raises: UnavailableError if they broke off."""
    builder = CompletionBuilder()
    for event in events:
        builder.add(event)
    return builder.build()
