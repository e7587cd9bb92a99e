"""Journals: what a request asked for and what came of it so far, so that another orchestrator can carry it on.

A journal is a log of chunks, each with the number of its first event; beside it stands whose request it is. The
random generator of a choice is a function of the request's seed, the choice's number and how many tokens were drawn,
so the tokens say where it stands. Values that have another shape are a `CorruptStateError`, never a crash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from braid_orchestrator.engine.requests import ChoiceFinished, Event, GenerateRequest, Started, TokenEvent
from braid_orchestrator.state.codec import pack, unpack_record
from braid_orchestrator.state.store import StateStore
from braid_rpc.errors import BraidError, CorruptStateError, NotFoundError

_OWNERS = "journals"
# Nobody asks for a request so long after its orchestrator died.
_EXPIRY_S = 3600.0

_KINDS: dict[str, type[Any]] = {"s": Started, "t": TokenEvent, "c": ChoiceFinished}
_TAGS = {kind: tag for tag, kind in _KINDS.items()}
_NAMES = {tag: [field.name for field in fields(kind)] for tag, kind in _KINDS.items()}
_EVENTS: dict[str, TypeAdapter[Any]] = {tag: TypeAdapter(kind) for tag, kind in _KINDS.items()}
_REQUEST = TypeAdapter(GenerateRequest)


@dataclass(frozen=True, slots=True)
class Journal:
    """A request, its seed set, and its events so far: `Started`, tokens, finished choices."""

    request: GenerateRequest
    events: tuple[Event, ...]


class Journals:
    """The journals in a store. Every call raises UnavailableError if the store does not answer."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def write(self, owner: str, journals: Mapping[str, tuple[GenerateRequest, int, Sequence[Event]]]) -> None:
        """Add events, from a number on, to the journals of these requests; those from 0 on begin a new journal."""
        begun = [request_id for request_id, (_, first, _) in journals.items() if first == 0]
        self._store.append({key: pack(_chunk(*value)) for key, value in journals.items()}, _EXPIRY_S, begun)
        for request_id in begun:
            self._store.put(_OWNERS, request_id, owner.encode(), _EXPIRY_S)

    def remove(self, request_ids: Iterable[str]) -> None:
        """Forget the journals of requests that have ended."""
        ids = list(request_ids)
        self._store.remove(_OWNERS, ids)
        self._store.remove_logs(ids)

    def owners(self) -> dict[str, str]:
        """Whose each request is."""
        return {key: value.decode(errors="replace") for key, value in self._store.items(_OWNERS).items()}

    def claim(self, request_id: str, owner: str, new_owner: str) -> bool:
        """Take a request over from a dead owner; False if somebody else was faster."""
        return self._store.swap(_OWNERS, request_id, owner.encode(), new_owner.encode(), _EXPIRY_S)

    def load(self, request_id: str) -> Journal:
        """Raises: NotFoundError if there is none; CorruptStateError."""
        what = f"journal {request_id}"
        chunks = self._store.read_log(request_id)
        if not chunks:
            raise NotFoundError(
                f"request {request_id!r}: no journal of it, expected one that was not finished"
            )
        request: GenerateRequest | None = None
        events: list[Event] = []
        for chunk in chunks:
            record = unpack_record(chunk, {"first": int, "events": list, "request": (dict, type(None))}, what)
            if record["first"] > len(events) or (request is None and record["request"] is None):
                raise CorruptStateError(
                    f"state store: {what}: got {len(events)} events before number {record['first']}"
                )
            if record["request"] is not None:
                request = _checked(_REQUEST, record["request"], what)
            known = len(events) - record["first"]  # a chunk that was sent twice
            events.extend(_event(values, what) for values in record["events"][known:])
        if request is None:
            raise CorruptStateError(f"state store: {what}: got no request")
        try:
            request.validate()
        except BraidError as error:
            raise CorruptStateError(f"state store: {what}: {error.message}") from error
        return Journal(request, tuple(events))


def _chunk(request: GenerateRequest, first: int, events: Sequence[Event]) -> dict[str, Any]:
    return {
        "first": first,
        "request": asdict(request) if first == 0 else None,
        "events": [_values(event) for event in events],
    }


def _values(event: Event) -> list[Any]:
    """Tag and fields. By hand, for this is done for every token."""
    match event:
        case TokenEvent():
            top = [[one.token_id, one.token, one.logprob] for one in event.top_logprobs]
            weights = dict(event.weights)
            stability = None if event.stability is None else asdict(event.stability)
            return ["t", event.index, event.token_id, event.text, event.logprob, top, weights, stability]
        case ChoiceFinished():
            stability = None if event.stability is None else asdict(event.stability)
            return ["c", event.index, event.finish_reason, event.stop_reason, event.text, stability]
        case _:
            tag = _TAGS[type(event)]
            return [tag, *(getattr(event, name) for name in _NAMES[tag])]


def _event(values: object, what: str) -> Event:
    if not isinstance(values, list) or not values or values[0] not in _KINDS:
        raise CorruptStateError(f"state store: {what}: got {str(values)[:40]!r}, expected an event")
    tag = values[0]
    named = dict(zip(_NAMES[tag], values[1:], strict=False))
    if tag == "t" and isinstance(named.get("top_logprobs"), list):
        named["top_logprobs"] = [
            dict(zip(("token_id", "token", "logprob"), one, strict=False)) if isinstance(one, list) else one
            for one in named["top_logprobs"]
        ]
    event: Event = _checked(_EVENTS[tag], named, what)
    return event


def _checked(adapter: TypeAdapter[Any], value: object, what: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptStateError(f"state store: {what}: {where}: {first['msg']}") from error
