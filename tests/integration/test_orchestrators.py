"""Two orchestrators on one store: what one began the other carries on, what one activates all use."""

from __future__ import annotations

import asyncio
import queue
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from braids import Client, Result, braid_config, shake, shaken_weights, two_backends
from programs import eventually
from redis_server import RedisServer

from braid_fusion.packed_weights import PackedWeights, pack_stack
from braid_fusion.stack import FusionStack
from braid_fusion.weights import read_packed
from braid_orchestrator.assembly import assemble_remote
from braid_orchestrator.config.values import BraidConfig, StateConfig
from braid_orchestrator.engine.requests import (
    Event,
    Finished,
    GenerateRequest,
    SamplingOptions,
    Started,
    TokenEvent,
)
from braid_orchestrator.serving.service import BraidService
from braid_orchestrator.state.codec import pack
from braid_orchestrator.state.journal import Journals
from braid_orchestrator.state.redis_store import RedisStore
from braid_rpc.errors import (
    BraidError,
    ConflictError,
    CorruptStateError,
    NotFoundError,
    UnavailableError,
    UnknownVersionError,
)
from braid_services.shard.backend import ShardBackend
from braid_services.shard.main import serve_backend

SOON_S = 20.0
PROMPT = "the one and the other"
# Everything that a sampler remembers: penalties over what was seen, a random generator, several choices, a stop.
SAMPLING = SamplingOptions(
    max_tokens=60,
    temperature=0.9,
    top_p=0.95,
    repetition_penalty=1.1,
    frequency_penalty=0.2,
    seed=11,
    ignore_eos=True,
    stop=("never said",),
    logprobs=2,
)
REQUEST = GenerateRequest(PROMPT, SAMPLING, request_id="mine", n=2)


class House:
    """Two shards, any number of orchestrators."""

    def __init__(self, redis: RedisServer, folder: Path, stack: ExitStack) -> None:
        self.redis = redis
        self._stack = stack
        backends: list[ShardBackend] = two_backends()
        self.weights = shaken_weights(braid_config(), backends, folder / "weights")
        shaken_weights(braid_config(), backends, folder / "weights", seed=4)
        self.config: BraidConfig = replace(
            braid_config(weights=self.weights),
            fusion=replace(braid_config(weights=self.weights).fusion, version="v3"),
            state=StateConfig("redis", redis.url, heartbeat_s=0.05, expiry_s=0.4),
        )
        self.backends = backends
        self._targets = {}
        for backend in backends:
            server = serve_backend(backend, ["127.0.0.1:0"])
            stack.callback(server.stop, 0)
            self._targets[backend.card.name] = lambda target=server.targets[0]: target

    def store(self) -> RedisStore:
        store = RedisStore(self.redis.url, "tiny")
        self._stack.callback(store.close)
        return store

    def orchestrator(self, when_lost: str = "refuse", weights: Path | None = None) -> BraidService:
        """``weights``: a folder of its own, as on another machine."""
        config = replace(self.config, state=replace(self.config.state, when_lost=when_lost))
        if weights is not None:
            shutil.copytree(self.weights, weights)
            config = replace(config, fusion=replace(config.fusion, weights=str(weights)))
        service = assemble_remote(config, self._targets, None, self.store())
        self._stack.callback(service.stop)
        return service


@pytest.fixture
def house(redis_server: RedisServer, tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(redis_server, tmp_path, stack)


def die(service: BraidService) -> None:
    """As a crash: no journal is written or removed any more, no leave is taken, nobody gets an answer."""
    link = service._link
    assert link is not None
    for thread in (link, link._writer):
        thread._stopping.set()
        thread._wake.set()
        thread._thread.join()
    link.leave()
    link._writer.write_all = lambda: None  # type: ignore[method-assign]
    link._store.remove = lambda *_: None  # type: ignore[method-assign]
    service._engine.stop()


def ask(
    service: BraidService, request: GenerateRequest, *, slowly: bool = False
) -> queue.Queue[Event | BraidError]:
    """``slowly``: by a model that takes its time, so that what happens meanwhile happens in the middle."""
    events: queue.Queue[Event | BraidError] = queue.Queue()
    link = service._link
    assert link is not None

    def put(item: Event | BraidError) -> None:
        if slowly:
            time.sleep(0.02)
        events.put(item)

    link.submit(service._engine, request, put)
    return events


def said(results: list[Result]) -> list[tuple[str, list[int], str]]:
    """What must be the same to the last token; log-probabilities are so up to rounding (other batches)."""
    return [(result.text, result.token_ids, result.finish_reason) for result in results]


def answer(service: BraidService, request: GenerateRequest) -> list[tuple[str, list[int], str]]:
    return said(Client.results(ask(service, request)))


def carry_on(service: BraidService, request_id: str) -> list[Event]:
    async def collect() -> list[Event]:
        _, events = await service.resume(request_id)
        return [event async for event in events]

    return asyncio.run(collect())


def results(events: list[Event]) -> list[tuple[str, list[int], str]]:
    queued: queue.Queue[Event | BraidError] = queue.Queue()
    for event in events:
        queued.put(event)
    return said(Client.results(queued))


def wait_for_tokens(events: queue.Queue[Event | BraidError], count: int) -> None:
    while count:
        count -= isinstance(events.get(timeout=SOON_S), TokenEvent)


def has(check: Callable[[], object]) -> Callable[[], bool]:
    def holds() -> bool:
        try:
            return bool(check())
        except BraidError:
            return False

    return holds


@pytest.mark.parametrize("route", [{}, {"use_braiding": False, "shard": "right"}])
def test_what_a_dead_one_began_another_carries_on(house: House, route: dict) -> None:
    request = replace(REQUEST, **route)
    first, second = house.orchestrator(), house.orchestrator()
    expected = answer(second, replace(request, request_id="before"))
    journals = Journals(house.store())
    running = ask(first, request, slowly=True)
    wait_for_tokens(running, 30)
    eventually(has(lambda: len(journals.load("mine").events) > 20), SOON_S, "the journal is written")
    with pytest.raises(ConflictError, match="answered elsewhere"):
        carry_on(second, "mine")
    die(first)
    num_written = len(journals.load("mine").events)
    assert num_written < 2 * SAMPLING.max_tokens, "it was over before it died: nothing is shown"
    eventually(lambda: asyncio.run(second.orphans()) == ["mine"], SOON_S, "its lease has expired")
    events = carry_on(second, "mine")
    assert results(events) == expected
    assert all(event.logprob is not None for event in events if isinstance(event, TokenEvent))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert events[-1].completion_tokens == 2 * SAMPLING.max_tokens
    eventually(lambda: journals.owners() == {}, SOON_S, "the journal is gone")
    with pytest.raises(NotFoundError):
        carry_on(second, "mine")


def test_a_version_that_is_no_longer_active_is_kept(house: House) -> None:
    first, second = house.orchestrator(), house.orchestrator()
    expected = answer(second, replace(REQUEST, request_id="before"))
    running = ask(first, REQUEST, slowly=True)
    wait_for_tokens(running, 10)
    eventually(has(lambda: Journals(house.store()).load("mine").events), SOON_S, "the journal is written")
    die(first)
    asyncio.run(second.activate("v4"))
    eventually(lambda: asyncio.run(second.orphans()) == ["mine"], SOON_S, "its lease has expired")
    assert results(carry_on(second, "mine")) == expected


def test_a_request_without_a_seed_can_be_carried_on_too(house: House) -> None:
    first, second = house.orchestrator(), house.orchestrator()
    journals = Journals(house.store())
    running = ask(first, replace(REQUEST, sampling=replace(SAMPLING, seed=None)), slowly=True)
    wait_for_tokens(running, 10)
    eventually(has(lambda: journals.load("mine").events), SOON_S, "the journal is written")
    die(first)
    journal = journals.load("mine")
    assert journal.request.sampling.seed is not None
    eventually(lambda: asyncio.run(second.orphans()) == ["mine"], SOON_S, "its lease has expired")
    assert results(carry_on(second, "mine")) == answer(second, replace(journal.request, request_id="again"))


def test_one_that_shuts_down_leaves_its_requests_to_others(house: House) -> None:
    first, second = house.orchestrator(), house.orchestrator()
    expected = answer(second, replace(REQUEST, request_id="before"))
    running = ask(first, REQUEST, slowly=True)
    wait_for_tokens(running, 4)
    first.stop()
    assert asyncio.run(second.orphans()) == ["mine"]
    assert results(carry_on(second, "mine")) == expected


def test_journals_end_with_their_requests(house: House) -> None:
    service = house.orchestrator()
    journals = Journals(house.store())
    running = ask(service, replace(REQUEST, sampling=replace(SAMPLING, max_tokens=120)))
    eventually(lambda: list(journals.owners()) == ["mine"], SOON_S, "the journal is there")
    service.cancel("mine")
    eventually(lambda: journals.owners() == {}, SOON_S, "the journal is gone")
    with pytest.raises(BraidError):
        Client.results(running)


def test_a_version_activated_on_one_is_used_by_all(house: House) -> None:
    first, second = house.orchestrator(), house.orchestrator()
    assert {first._engine.weights_version, second._engine.weights_version} == {"v3"}
    running = ask(second, REQUEST, slowly=True)
    expected = answer(first, replace(REQUEST, request_id="before"))
    assert asyncio.run(first.activate("v4")) == "v4"
    eventually(lambda: second._engine.weights_version == "v4", SOON_S, "the other has noticed")
    assert said(Client.results(running)) == expected, "what was running kept its version"
    third = house.orchestrator()
    assert third._engine.weights_version == "v4"
    with pytest.raises(UnknownVersionError):
        asyncio.run(first.activate("v9"))
    assert second._engine.weights_version == "v4"


def packed(service: BraidService, seed: int) -> PackedWeights:
    stack = FusionStack(service._engine.plan)
    shake(stack, seed)
    return pack_stack(stack)


def test_a_version_published_on_one_comes_to_all_whose_modules_are_apart(
    house: House, tmp_path: Path
) -> None:
    first, second = (house.orchestrator(weights=tmp_path / name) for name in ("one", "other"))
    running = ask(second, REQUEST, slowly=True)
    before = answer(first, replace(REQUEST, request_id="before"))
    weights = packed(first, 8)
    published = asyncio.run(first.publish(weights.card_json, weights.data))
    assert published.active_version == published.version
    eventually(
        lambda: second._engine.weights_version == published.version, SOON_S, "the other has fetched it"
    )
    assert read_packed(tmp_path / "other" / published.version) == weights
    after = answer(first, replace(REQUEST, request_id="after"))
    assert answer(second, replace(REQUEST, request_id="after too")) == after != before
    assert said(Client.results(running)) == before, "what was running kept its version"
    third = house.orchestrator(weights=tmp_path / "late")
    eventually(lambda: third._engine.weights_version == published.version, SOON_S, "who starts later, too")
    assert answer(third, replace(REQUEST, request_id="late")) == after
    asyncio.run(second.activate("v3"))
    eventually(lambda: first._engine.weights_version == "v3", SOON_S, "and back again")


def test_one_name_means_the_same_weights_everywhere(house: House, tmp_path: Path) -> None:
    first, second = (house.orchestrator(weights=tmp_path / name) for name in ("one", "other"))
    mine, yours = packed(first, 8), packed(first, 9)
    asyncio.run(first.publish(mine.card_json, mine.data, "v8", activate=False))
    with pytest.raises(ConflictError, match="'v8', which another orchestrator published"):
        asyncio.run(second.publish(yours.card_json, yours.data, "v8"))
    assert not (tmp_path / "other" / "v8").exists()
    assert second._engine.weights_version == "v3"
    assert asyncio.run(second.publish(mine.card_json, mine.data, "v8")).active_version == "v8"
    eventually(lambda: first._engine.weights_version == "v8", SOON_S, "the other has noticed")


def test_nothing_is_published_while_redis_is_away(house: House, tmp_path: Path) -> None:
    patient = house.orchestrator(weights=tmp_path / "one")
    alone = house.orchestrator("embedded", weights=tmp_path / "other")
    weights = packed(patient, 8)
    house.redis.stop()
    with pytest.raises(UnavailableError, match="state store"):
        asyncio.run(patient.publish(weights.card_json, weights.data, "v8"))
    assert not (tmp_path / "one" / "v8").exists()
    assert asyncio.run(alone.publish(weights.card_json, weights.data, "v8")).active_version == "v8"


@pytest.mark.parametrize("when_lost", ["refuse", "embedded"])
def test_redis_gone_in_the_middle(house: House, when_lost: str) -> None:
    service = house.orchestrator(when_lost)
    expected = answer(service, replace(REQUEST, request_id="before"))
    running = ask(service, REQUEST, slowly=True)
    house.redis.stop()
    assert said(Client.results(running)) == expected
    link = service._link
    assert link is not None
    eventually(lambda: link._lost is not None, SOON_S, "the loss is noticed")
    if when_lost == "refuse":
        with pytest.raises(UnavailableError, match="state store: redis at redis://127") as refused:
            generate(service, REQUEST)
        assert refused.value.retry_after_s > 0
        with pytest.raises(UnavailableError, match="state store"):
            asyncio.run(service.activate("v4"))
    else:
        # Its id is free a moment after its last event.
        eventually(lambda: not service.engine._requests, SOON_S, "the request is forgotten")
        assert results(generate(service, REQUEST)) == expected
        asyncio.run(service.activate("v4"))
    house.redis.start()
    eventually(lambda: link._lost is None, SOON_S, "it has come back by itself")
    assert results(generate(service, replace(REQUEST, n=1)))
    journals = Journals(house.store())
    last = ask(service, replace(REQUEST, request_id="last", sampling=replace(SAMPLING, max_tokens=120)))
    eventually(lambda: list(journals.owners()) == ["last"], SOON_S, "journals are written again")
    Client.results(last)
    eventually(lambda: journals.owners() == {}, SOON_S, "and removed")


def test_redis_gone_at_the_start(house: House) -> None:
    house.redis.stop()
    patient, alone = house.orchestrator("refuse"), house.orchestrator("embedded")
    with pytest.raises(UnavailableError, match="state store: redis"):
        generate(patient, REQUEST)
    expected = results(generate(alone, REQUEST))
    house.redis.start()
    eventually(has(lambda: patient._link.check() is None), SOON_S, "it has come back by itself")  # type: ignore[union-attr]
    assert results(generate(patient, REQUEST)) == expected


def generate(service: BraidService, request: GenerateRequest) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in service.generate(request)]

    return asyncio.run(collect())


@pytest.mark.parametrize(
    "foreign",
    [
        b"\x80\x04\x95",
        pack("text"),
        pack({"first": 0, "events": [], "request": None}),
        pack({"first": 0, "events": [], "request": {"prompt": 3}}),
        pack({"first": 0, "events": [["t", 0]], "request": {"prompt": "x"}}),
        pack({"first": 0, "events": [["z"]], "request": {"prompt": "x"}}),
        pack({"first": 5, "events": [], "request": {"prompt": "x"}}),
        pack({"first": 0, "events": [], "request": {"prompt": "x", "n": 0}}),
    ],
)
def test_a_foreign_journal_is_a_typed_error(house: House, foreign: bytes) -> None:
    store = house.store()
    store.append({"mine": foreign}, 60.0)
    store.put("journals", "mine", b"nobody")
    service = house.orchestrator()
    with pytest.raises(CorruptStateError, match="journal mine"):
        carry_on(service, "mine")
    assert results(generate(service, replace(REQUEST, request_id="other", n=1)))


def test_a_foreign_version_is_told_and_nothing_else_happens(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.store().put("fusion", "active", b"\xc1")
    service = house.orchestrator()
    assert "the active fusion version" in caplog.text
    assert service._engine.weights_version == "v3"
    assert results(generate(service, replace(REQUEST, n=1)))
