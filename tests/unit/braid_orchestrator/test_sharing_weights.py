"""Weights that one orchestrator took in and others fetch from the store: what can go wrong on the way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from braids import shake
from programs import eventually

from braid_fusion.packed_weights import PackedWeights, pack_stack
from braid_fusion.plan import BraidPlan, PlanPoint, PlanShard
from braid_fusion.stack import FusionStack
from braid_orchestrator.config.values import StateConfig
from braid_orchestrator.engine.local import LocalFusion
from braid_orchestrator.state import fusion_weights, weights_fetcher
from braid_orchestrator.state.codec import pack
from braid_orchestrator.state.fusion_weights import FusionWeights
from braid_orchestrator.state.link import StateLink
from braid_orchestrator.state.memory import MemoryStore
from braid_rpc.errors import ConflictError, CorruptStateError, InvalidRequestError, UnavailableError
from braid_rpc.publishing import PublishedVersion
from braid_services.fusion.backend import FusionBackend

PLAN = BraidPlan(
    shards=(PlanShard("code", 6, 6, 20, "m0", "t"), PlanShard("prose", 8, 8, 20, "m1", "t")),
    anchor=0,
    points=(PlanPoint("1", (1, 1), "mlp", 4, receivers=(0, 1)),),
)
SOON_S = 20.0


def packed(seed: int) -> PackedWeights:
    stack = FusionStack(PLAN)
    shake(stack, seed)
    return pack_stack(stack)


class Embedded:
    """As much of an engine as is asked here, over modules of its own."""

    def __init__(self) -> None:
        self.fusion = LocalFusion(FusionBackend())
        self.fusion.prepare(PLAN)
        self.activate, self.publish = self.fusion.activate, self.fusion.publish

    @property
    def weights_version(self) -> str:
        return self.fusion.active_version

    @property
    def max_publish_bytes(self) -> int:
        return self.fusion.max_publish_bytes


class Away(MemoryStore):
    """Answers until it doesn't; ``calls_left`` None: always. ``beats`` counts those that have been heard."""

    calls_left: int | None = None
    tells = True

    def __init__(self) -> None:
        super().__init__()
        self.beats: Counter[str] = Counter()

    def publish(self, topic: str, message: bytes) -> None:
        if not self.tells:
            raise UnavailableError("state store: memory does not answer")
        super().publish(topic, message)

    def put(self, table: str, key: str, value: bytes, expiry_s: float | None = None) -> None:
        self.beats[key] += 1
        if table.startswith("fusion") and self.calls_left is not None:
            if not self.calls_left:
                raise UnavailableError("state store: memory does not answer")
            self.calls_left -= 1
        super().put(table, key, value, expiry_s)


@pytest.fixture
def store() -> Away:
    return Away()


@pytest.fixture(params=["refuse"])
def links(store: Away, request: pytest.FixtureRequest) -> Iterator[list[StateLink]]:
    """The parameter says what they do while the store is away."""
    with ExitStack() as stack:
        found = []
        for _ in range(2):
            config = StateConfig(heartbeat_s=0.02, expiry_s=1.0, when_lost=request.param)
            link = StateLink(store, config, Embedded())  # type: ignore[arg-type]
            link.start()
            stack.callback(link.stop)
            found.append(link)
        yield found


def version_at(link: StateLink) -> str:
    return link._engine.weights_version


def wait_for_beats(store: Away, links: list[StateLink]) -> None:
    """Until each has looked at the store once more, from beginning to end."""
    seen = dict(store.beats)
    for link in links:
        eventually(lambda o=link.owner: store.beats[o] > seen[o] + 1, SOON_S, "two heartbeats")  # type: ignore[misc]


def publish(link: StateLink, weights: PackedWeights, *args: object, **options: object) -> PublishedVersion:
    return link.publish(weights.card_json, weights.data, *args, **options)  # type: ignore[arg-type]


def test_a_version_comes_to_the_others_in_chunks(
    links: list[StateLink], store: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion_weights, "_CHUNK_BYTES", 100)
    weights = packed(1)
    published = publish(links[0], weights)
    assert published == PublishedVersion(published.version, published.version, in_memory_only=True)
    eventually(lambda: version_at(links[1]) == published.version, SOON_S, "the other has it")
    assert len(store.items("fusion-weights-chunks")) == -(-len(weights.data) // 100) > 10
    infos = [link._engine.fusion._backend.list_versions() for link in links]  # type: ignore[attr-defined]
    assert infos[0] == infos[1]


def test_what_the_modules_refuse_is_taken_out_of_the_store(links: list[StateLink], store: Away) -> None:
    weights = packed(1)
    with pytest.raises(InvalidRequestError, match="weights_sha256"):
        publish(links[0], PackedWeights(weights.card_json, bytes(len(weights.data))), "v1")
    assert store.items("fusion-weights") == store.items("fusion-weights-chunks") == {}
    for bad in ("../x", "", "untrained"):
        with pytest.raises((InvalidRequestError, ConflictError)):
            publish(links[0], PackedWeights("{}", b"x"), bad)
    with pytest.raises(InvalidRequestError, match="expected at most"):
        publish(links[0], PackedWeights(weights.card_json, bytes(100_000)), "v1")
    assert store.items("fusion-weights") == {}
    assert {version_at(link) for link in links} == {"untrained"}


def test_a_refusal_of_another_name_leaves_what_is_offered(links: list[StateLink], store: Away) -> None:
    publish(links[0], packed(1), "v1")
    with pytest.raises(ConflictError):
        publish(links[1], packed(2), "v1")
    assert list(store.items("fusion-weights")) == ["v1"]
    eventually(lambda: version_at(links[1]) == "v1", SOON_S, "the other has it")


def test_old_versions_leave_the_store_and_the_active_one_stays(links: list[StateLink], store: Away) -> None:
    publish(links[0], packed(1), "v1")
    for seed in range(2, 6):
        publish(links[0], packed(seed), f"v{seed}", activate=False)
    assert set(store.items("fusion-weights")) == {"v1", "v4", "v5"}
    assert {key.partition(":")[0] for key in store.items("fusion-weights-chunks")} == {"v1", "v4", "v5"}
    late = StateLink(store, StateConfig(heartbeat_s=0.02, expiry_s=1.0), Embedded())  # type: ignore[arg-type]
    late.start()
    try:
        eventually(lambda: version_at(late) == "v1", SOON_S, "who starts later gets the active one")
    finally:
        late.stop()


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_store_that_goes_away_in_the_middle_is_told_and_a_repeat_ends_it(
    calls: int, links: list[StateLink], store: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion_weights, "_CHUNK_BYTES", 400)
    weights = packed(1)
    store.calls_left = calls
    with pytest.raises(UnavailableError, match="state store"):
        publish(links[0], weights, "v1")
    assert {version_at(link) for link in links} == {"untrained"}
    assert [link._engine.fusion._backend.versions.loaded for link in links] == [("untrained",)] * 2  # type: ignore[attr-defined]
    store.calls_left = None
    publish(links[0], weights, "v1")
    eventually(lambda: version_at(links[1]) == "v1", SOON_S, "the other has it")


def test_an_activation_that_the_store_does_not_hear_of_is_taken_back(
    links: list[StateLink], store: Away
) -> None:
    publish(links[0], packed(1), "v1")
    eventually(lambda: version_at(links[1]) == "v1", SOON_S, "the other has it")
    publish(links[0], packed(2), "v2", activate=False)
    store.calls_left = 0
    with pytest.raises(UnavailableError, match="state store"):
        links[0].activate("v2")
    assert {version_at(link) for link in links} == {"v1"}
    # Its weights get there, their being chosen doesn't.
    weights = packed(3)
    store.calls_left = 1
    with pytest.raises(UnavailableError, match="state store"):
        publish(links[0], weights, "v3")
    assert {version_at(link) for link in links} == {"v1"}
    store.calls_left = None
    wait_for_beats(store, links)
    assert {version_at(link) for link in links} == {"v1"}
    publish(links[0], weights, "v3")
    eventually(lambda: version_at(links[1]) == "v3", SOON_S, "a repeat ends it")


def test_a_notice_that_is_lost_is_no_failure(links: list[StateLink], store: Away) -> None:
    store.tells = False
    assert publish(links[0], packed(1), "v1").active_version == "v1"
    eventually(lambda: version_at(links[1]) == "v1", SOON_S, "the other sees it with a heartbeat")


@pytest.mark.parametrize("links", ["embedded"], indirect=True)
@pytest.mark.parametrize("before", ["v1", None])
def test_what_was_activated_while_the_store_was_away_counts_when_it_is_back(
    before: str | None, links: list[StateLink], store: Away
) -> None:
    for seed in (1, 2):
        publish(links[0], packed(seed), f"v{seed}", activate=False)
    if before is not None:
        links[0].activate(before)
        eventually(lambda: version_at(links[1]) == before, SOON_S, "both have it")
    store.calls_left = 0
    links[0].activate("v2")
    wait_for_beats(store, links)
    assert version_at(links[0]) == "v2" and version_at(links[1]) == (before or "untrained")
    store.calls_left = None
    eventually(lambda: version_at(links[1]) == "v2", SOON_S, "the other has it too")
    assert version_at(links[0]) == "v2"


@pytest.mark.parametrize("links", ["embedded"], indirect=True)
def test_what_others_activated_meanwhile_is_newer_than_what_one_could_not_tell(
    links: list[StateLink], store: Away, caplog: pytest.LogCaptureFixture
) -> None:
    cut_off, other = links
    publish(cut_off, packed(2), "v2", activate=False)
    for seed in (3, 1):
        publish(other, packed(seed), f"v{seed}", activate=seed == 1)
    eventually(lambda: version_at(cut_off) == "v1", SOON_S, "both have it")
    told = cut_off._version.set

    def away(version: str) -> None:
        raise UnavailableError("state store: memory does not answer")

    cut_off._version.set = away  # type: ignore[method-assign]
    cut_off.activate("v2")
    other.activate("v3")
    cut_off._version.set = told  # type: ignore[method-assign]
    eventually(lambda: version_at(cut_off) == "v3", SOON_S, "it has come to that too")
    wait_for_beats(store, links)
    assert {version_at(link) for link in links} == {"v3"}
    assert "v2, which was activated here while the state store was away, gives way to v3" in caplog.text


@pytest.mark.parametrize("damage", ["other bytes", "a chunk is gone", "no record", "a foreign record"])
def test_weights_that_are_damaged_in_the_store_are_not_used_and_it_is_said_once(
    damage: str, links: list[StateLink], store: Away, caplog: pytest.LogCaptureFixture
) -> None:
    weights = packed(1)
    FusionWeights(store).offer("v1", weights.card_json, weights.data, ())
    if damage == "other bytes":
        store.put("fusion-weights-chunks", "v1:0", bytes(len(weights.data)))
    elif damage == "a chunk is gone":
        store.remove("fusion-weights-chunks", ["v1:0"])
    elif damage == "no record":
        store.remove("fusion-weights", ["v1"])
    else:
        store.put("fusion-weights", "v1", b"\xc1")
    links[0]._version.set("v1")
    eventually(lambda: caplog.text.count("is not used here") == 2, SOON_S, "both have said so")
    beats = threading.Event()
    beats.wait(0.2)  # some more heartbeats: nothing is tried again so soon
    assert caplog.text.count("is not used here") == 2
    assert {version_at(link) for link in links} == {"untrained"}
    assert all(link.is_up for link in links)


def test_what_failed_is_tried_again_later(
    links: list[StateLink], store: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_fetcher, "_RETRY_EVERY_S", 0.05)
    weights = packed(1)
    links[0]._version.set("v1")
    FusionWeights(store).offer("v1", weights.card_json, weights.data, ())
    eventually(lambda: {version_at(link) for link in links} == {"v1"}, SOON_S, "both have it")


def test_heartbeats_do_not_wait_for_weights(links: list[StateLink], store: Away) -> None:
    held, go = threading.Event(), threading.Event()
    engine = links[1]._engine
    publish_there = engine.publish

    def slow(*args: object, **options: object) -> PublishedVersion:
        held.set()
        go.wait(SOON_S)
        return publish_there(*args, **options)  # type: ignore[arg-type]

    engine.publish = slow  # type: ignore[method-assign]
    publish(links[0], packed(1), "v1")
    assert held.wait(SOON_S)
    beats: list[str] = []
    put, told = store.put, threading.Event()

    def count(table: str, key: str, value: bytes, expiry_s: float | None = None) -> None:
        put(table, key, value, expiry_s)
        if key == links[1].owner:
            beats.append(key)
            if len(beats) == 5:
                told.set()

    store.put = count  # type: ignore[method-assign]
    assert told.wait(SOON_S)
    assert version_at(links[1]) == "untrained"
    go.set()
    eventually(lambda: version_at(links[1]) == "v1", SOON_S, "it has come")


@pytest.mark.parametrize("num_bytes", [-1, 2**60])
def test_a_record_of_impossible_size_is_a_typed_error(store: Away, num_bytes: int) -> None:
    record = {"card": "{}", "sha256": "", "num_bytes": num_bytes, "offered_unix_s": 1.0}
    store.put("fusion-weights", "v1", pack(record))
    with pytest.raises(CorruptStateError, match="num_bytes"):
        FusionWeights(store).fetch("v1")
    FusionWeights(store).withdraw("v1")
    assert FusionWeights(store).fetch("v1") is None
