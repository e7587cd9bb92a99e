"""The state store, in memory and in a real Redis: one suite for both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import eventually

from braid_orchestrator.state.codec import pack, unpack
from braid_orchestrator.state.fusion_version import FusionVersion
from braid_orchestrator.state.memory import MemoryStore
from braid_orchestrator.state.redis_store import RedisStore
from braid_orchestrator.state.registry import Registry, ReplicaRecord
from braid_orchestrator.state.store import StateStore
from braid_rpc.errors import CorruptStateError

SOON_S = 10.0
SHORT_S = 0.15
LONG_S = 60.0


@pytest.fixture(params=["memory", "redis"])
def make_store(request: pytest.FixtureRequest) -> Iterator[Callable[[], StateStore]]:
    """Each call gives another process's view of the same state."""
    if request.param == "memory":
        shared = MemoryStore()
        yield lambda: shared
        shared.close()
        return
    server = request.getfixturevalue("redis_server")
    opened: list[StateStore] = []

    def make() -> StateStore:
        opened.append(RedisStore(server.url, "tiny"))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store: Callable[[], StateStore]) -> StateStore:
    return make_store()


def test_what_one_writes_another_reads(make_store: Callable[[], StateStore]) -> None:
    one, other = make_store(), make_store()
    assert other.get("table", "key") is None
    one.put("table", "key", b"\x00\xff")
    one.put("elsewhere", "key", b"another")
    assert other.get("table", "key") == b"\x00\xff"
    assert other.items("table") == {"key": b"\x00\xff"}
    other.remove("table", ["key", "unknown"])
    assert one.get("table", "key") is None
    assert one.items("table") == {}
    assert one.items("elsewhere") == {"key": b"another"}


def test_a_value_expires_unless_it_is_renewed(store: StateStore) -> None:
    store.put("table", "renewed", b"1", SHORT_S)
    store.put("table", "left", b"2", SHORT_S)
    store.put("table", "kept", b"3")
    store.put("table", "renewed", b"1", LONG_S)
    eventually(lambda: "left" not in store.items("table"), SOON_S, "what is not renewed is gone")
    assert store.items("table") == {"renewed": b"1", "kept": b"3"}
    assert store.get("table", "left") is None


def test_only_one_of_many_swaps_wins(make_store: Callable[[], StateStore]) -> None:
    stores = [make_store() for _ in range(4)]
    stores[0].put("owners", "request", b"dead")

    def claim(number: int) -> bool:
        return stores[number % 4].swap("owners", "request", b"dead", b"owner %d" % number, LONG_S)

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(claim, range(16)))
    assert won.count(True) == 1
    assert stores[0].get("owners", "request") == b"owner %d" % won.index(True)
    assert list(stores[0].items("owners")) == ["request"]


def test_a_swap_can_expect_nothing(store: StateStore) -> None:
    assert not store.swap("table", "key", b"something", b"1")
    assert store.swap("table", "key", None, b"1")
    assert not store.swap("table", "key", None, b"2")
    assert store.items("table") == {"key": b"1"}


def test_a_log_that_is_begun_has_no_other_entry(store: StateStore) -> None:
    store.append({"a": b"1", "b": b"x"}, LONG_S)
    store.append({"a": b"2", "b": b"y"}, LONG_S, begun=["a"])
    assert (store.read_log("a"), store.read_log("b")) == ([b"2"], [b"x", b"y"])


def test_a_log_keeps_its_order_and_ends(store: StateStore) -> None:
    store.append({"a": b"1", "b": b"x"}, LONG_S)
    store.append({"a": b"2"}, LONG_S)
    store.append({"c": b"y"}, SHORT_S)
    assert store.read_log("a") == [b"1", b"2"]
    eventually(lambda: store.read_log("c") == [], SOON_S, "a log that nobody writes is gone")
    store.append({"c": b"z"}, LONG_S)
    assert store.read_log("c") == [b"z"]
    store.remove_logs(["a", "unknown"])
    assert (store.read_log("a"), store.read_log("b")) == ([], [b"x"])


def test_counting_begins_again_with_each_window(store: StateStore) -> None:
    counts = [store.count("caller", LONG_S) for _ in range(3)]
    assert [count.count for count in counts] == [1, 2, 3]
    assert all(0 < count.resets_in_s <= LONG_S for count in counts)
    assert store.count("another", SHORT_S).count == 1
    eventually(lambda: store.count("another", SHORT_S).count == 1, SOON_S, "a new window")


def test_many_count_together(make_store: Callable[[], StateStore]) -> None:
    stores = [make_store() for _ in range(4)]
    with ThreadPoolExecutor(8) as threads:
        counts = list(threads.map(lambda i: stores[i % 4].count("caller", LONG_S).count, range(40)))
    assert sorted(counts) == list(range(1, 41))


def test_notices_reach_whoever_listens(make_store: Callable[[], StateStore]) -> None:
    one, other = make_store(), make_store()
    heard: list[bytes] = []
    there = threading.Event()

    def hear(message: bytes) -> None:
        heard.append(message)
        there.set()

    subscription = other.subscribe("topic", hear)
    one.publish("another topic", b"not for us")
    one.publish("topic", b"news")
    assert there.wait(SOON_S)
    subscription.close()
    subscription.close()
    one.publish("topic", b"too late")
    assert heard == [b"news"]


def test_a_replica_is_there_as_long_as_it_says_so(make_store: Callable[[], StateStore]) -> None:
    shard, orchestrator = Registry(make_store()), Registry(make_store())
    first = ReplicaRecord("code", "1", "here", ("unix:/a", "10.0.0.5:7001"), "model", "tokenizer", 2, 1024)
    second = ReplicaRecord("code", "2", "there", ("10.0.0.6:7001",), "model", "tokenizer")
    shard.renew(first, LONG_S)
    shard.renew(second, SHORT_S)
    shard.renew(ReplicaRecord("code2", "3", "there", ("10.0.0.7:7001",)), LONG_S)
    assert first in orchestrator.replicas("code")
    eventually(lambda: orchestrator.replicas("code") == [first], SOON_S, "a heartbeat that stops is noticed")
    shard.remove("code", "1")
    assert orchestrator.replicas("code") == []


@pytest.mark.parametrize(
    "foreign",
    [b"\x80\x04\x95", b"", b"hello", pack([1]), pack({"part": "code"}), pack({"part": 3, "addresses": []})],
)
def test_a_foreign_replica_is_passed_over(store: StateStore, foreign: bytes) -> None:
    registry = Registry(store)
    good = ReplicaRecord("code", "1", "here", ("10.0.0.5:7001",))
    registry.renew(good, LONG_S)
    store.put("replicas", "code/0", foreign)
    assert registry.replicas("code") == [good]


def test_a_version_that_was_activated_is_told_and_stays(make_store: Callable[[], StateStore]) -> None:
    one, other = FusionVersion(make_store()), FusionVersion(make_store())
    assert one.get() is None
    told = threading.Event()
    subscription = other.subscribe(told.set)
    one.set("v2")
    assert told.wait(SOON_S)
    subscription.close()
    assert other.get() == "v2"


@pytest.mark.parametrize("foreign", [b"\xc1", b"", pack("v2"), pack({"version": 2})])
def test_a_foreign_version_is_a_typed_error(store: StateStore, foreign: bytes) -> None:
    store.put("fusion", "active", foreign)
    with pytest.raises(CorruptStateError, match="the active fusion version"):
        FusionVersion(store).get()


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 99), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_values_come_back_as_they_were(value: object) -> None:
    assert unpack(pack(value), "value") == value


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=64))
def test_any_bytes_are_a_value_or_a_typed_error(value: bytes) -> None:
    with suppress(CorruptStateError):
        unpack(value, "value")
