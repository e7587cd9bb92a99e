"""What only a Redis can do wrong: be away, hold something foreign, be addressed wrongly."""

from __future__ import annotations

import threading

import pytest
from programs import eventually, free_port
from redis_server import RedisServer

from braid_orchestrator.config.values import StateConfig
from braid_orchestrator.state.opening import open_store
from braid_orchestrator.state.redis_store import RedisStore
from braid_orchestrator.state.registry import Registry, ReplicaRecord
from braid_orchestrator.state.store import StateStore
from braid_rpc.errors import ConfigError, CorruptStateError, UnavailableError

CALLS = {
    "get": lambda store: store.get("table", "key"),
    "items": lambda store: store.items("table"),
    "put": lambda store: store.put("table", "key", b"value"),
    "swap": lambda store: store.swap("table", "key", None, b"value"),
    "remove": lambda store: store.remove("table", ["key"]),
    "append": lambda store: store.append({"log": b"entry"}, 1.0),
    "read_log": lambda store: store.read_log("log"),
    "remove_logs": lambda store: store.remove_logs(["log"]),
    "count": lambda store: store.count("caller", 1.0),
    "publish": lambda store: store.publish("topic", b"news"),
    "subscribe": lambda store: store.subscribe("topic", lambda message: None),
    "ping": lambda store: store.ping(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_store_that_is_away_is_named(call: str) -> None:
    url = f"redis://user:secret@127.0.0.1:{free_port()}/0"
    store = RedisStore(url, "tiny")
    with pytest.raises(UnavailableError, match=r"redis at redis://127\.0\.0\.1:") as refused:
        CALLS[call](store)
    assert "secret" not in refused.value.message
    assert refused.value.retry_after_s > 0
    store.close()


def test_a_store_that_comes_back_is_used_again(redis_server: RedisServer) -> None:
    store = RedisStore(redis_server.url, "tiny")
    heard = threading.Event()
    store.subscribe("topic", lambda message: heard.set())
    redis_server.stop()
    with pytest.raises(UnavailableError):
        store.ping()
    redis_server.start()
    store.ping()

    def told_again() -> bool:
        store.publish("topic", b"news")
        return heard.wait(0.1)

    eventually(told_again, 20.0, "the subscription is there again")
    store.close()


def test_foreign_keys_are_a_typed_error(redis_server: RedisServer) -> None:
    store: StateStore = RedisStore(redis_server.url, "tiny")
    with redis_server.client() as client:
        client.lpush("{braid:tiny}:table:key", "foreign")
        client.set("{braid:tiny}:log:log", "foreign")
        client.set("{braid:tiny}:count:caller", "foreign")
        client.set("{braid:tiny}:index:wrong", "foreign")
    for call in ("get", "append", "read_log", "count"):
        with pytest.raises(CorruptStateError, match="another kind"):
            CALLS[call](store)
    with pytest.raises(CorruptStateError):
        store.items("wrong")
    store.close()


def test_a_foreign_key_hides_no_other_replica(redis_server: RedisServer) -> None:
    store = RedisStore(redis_server.url, "tiny")
    good = ReplicaRecord("code", "1", "here", ("10.0.0.5:7001",))
    Registry(store).renew(good, 60.0)
    with redis_server.client() as client:
        client.lpush("{braid:tiny}:replicas:code/0", "foreign")
        client.sadd("{braid:tiny}:index:replicas", "code/0")
    assert Registry(store).replicas("code") == [good]
    store.close()


def test_braids_of_other_names_do_not_meet(redis_server: RedisServer) -> None:
    one, other = RedisStore(redis_server.url, "one"), RedisStore(redis_server.url, "other")
    one.put("table", "key", b"1")
    assert other.items("table") == {}
    one.close()
    other.close()


def test_the_password_comes_from_a_file(redis_server: RedisServer, tmp_path: object) -> None:
    with redis_server.client() as client:
        client.config_set("requirepass", "open sesame")
    secret = tmp_path / "password"  # type: ignore[operator]
    secret.write_text("open sesame\n")
    with_it = open_store(StateConfig("redis", redis_server.url, str(secret)), "tiny")
    with_it.ping()
    with_it.close()
    without = open_store(StateConfig("redis", redis_server.url), "tiny")
    with pytest.raises(UnavailableError, match="redis at"):
        without.ping()
    without.close()


@pytest.mark.parametrize("url", ["http://somewhere", "nonsense", "redis://host:port"])
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"state\.url"):
        open_store(StateConfig("redis", url), "tiny")
