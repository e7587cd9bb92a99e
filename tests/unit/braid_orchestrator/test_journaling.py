"""When the journals of requests are written, and what of them stands in between."""

from __future__ import annotations

import pytest

from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Finished,
    GenerateRequest,
    RequestTimings,
    Started,
    TokenEvent,
)
from braid_orchestrator.state.journal import Journals
from braid_orchestrator.state.journaling import JournalWriter
from braid_orchestrator.state.memory import MemoryStore
from braid_rpc.errors import NotFoundError, UnavailableError
from braid_rpc.stability import ChoiceStability, StabilityOptions, TokenStability

REQUEST = GenerateRequest("prompt", request_id="r")
BEGUN = Started("r", 3, "v1")


class CountingStore(MemoryStore):
    """Counts what is appended; fails if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.num_appended = 0
        self.is_away = False

    def append(self, entries, expiry_s, begun=()) -> None:
        if self.is_away:
            raise UnavailableError("away")
        self.num_appended += 1
        super().append(entries, expiry_s, begun)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def writer(store: CountingStore) -> JournalWriter:
    return JournalWriter(Journals(store), "me")


def token(number: int) -> TokenEvent:
    return TokenEvent(0, number, str(number))


def test_how_stable_a_text_is_is_kept_to_the_last_digit(store: CountingStore, writer: JournalWriter) -> None:
    options = StabilityOptions(stop=True, auto_temperature=True, threshold=0.1)
    request = GenerateRequest("prompt", request_id="s", stability=options)
    told = TokenStability(1 / 3, None, 0.7, 1 / 7, None), TokenStability(2 / 3, -1e-17, 0.7 / 3, None, 0.1)
    events = [TokenEvent(0, number, "x", stability=one) for number, one in enumerate(told)]
    ending = ChoiceFinished(0, "instability", None, "", ChoiceStability(0.5, 1 / 7, None, 1e-17, False))
    note = writer.begin(request, lambda item: None)
    for event in (*events, ending):
        note(event)
    writer.write_all()
    journal = Journals(store).load("s")
    assert journal.request == request and journal.events == (*events, ending)


def test_what_has_nothing_new_is_not_written_again(store: CountingStore, writer: JournalWriter) -> None:
    note = writer.begin(REQUEST, lambda item: None)
    for _ in range(3):
        writer.write_all()
    assert store.num_appended == 1
    assert Journals(store).load("r").events == ()
    note(BEGUN)
    note(token(1))
    for _ in range(3):
        writer.write_all()
    note(token(2))
    writer.write_all()
    assert store.num_appended == 3
    assert Journals(store).load("r").events == (BEGUN, token(1), token(2))
    note(Finished(3, 2, RequestTimings(0, 0, 0)))
    writer.write_all()
    with pytest.raises(NotFoundError):
        Journals(store).load("r")


def test_a_journal_that_is_carried_on_stands_until_it_has_been_caught_up_with(
    store: CountingStore, writer: JournalWriter
) -> None:
    past = (BEGUN, token(1), token(2))
    Journals(store).write("dead", {"r": (REQUEST, 0, past)})
    note = writer.begin(REQUEST, lambda item: None, carried_on=True)
    writer.write_all()
    assert Journals(store).load("r").events == past
    store.is_away = True
    writer.write_all()
    store.is_away = False
    writer.write_all()
    assert Journals(store).load("r").events == past
    for event in (*past, token(3)):
        note(event)
    writer.write_all()
    assert Journals(store).load("r").events == (*past, token(3))


def test_after_a_loss_all_is_written_anew(store: CountingStore, writer: JournalWriter) -> None:
    note = writer.begin(REQUEST, lambda item: None)
    note(BEGUN)
    writer.write_all()
    store.is_away = True
    note(token(1))
    with pytest.raises(UnavailableError):
        writer.write_all()
    store.is_away = False
    store.remove_logs(["r"])
    writer.write_all()
    assert Journals(store).load("r").events == (BEGUN, token(1))
