"""Several replicas of one shard, found in the registry: whoever comes or goes, no request fails, no token changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from braids import Client, braid_config, shaken_weights, two_backends
from models import tiny_backend
from programs import eventually
from redis_server import RedisServer

from braid_orchestrator.assembly import Replicas, assemble_remote
from braid_orchestrator.config.values import LimitsConfig
from braid_orchestrator.engine.requests import TokenEvent
from braid_orchestrator.state.discovery import Discovery
from braid_orchestrator.state.lease import Lease, shard_record
from braid_orchestrator.state.redis_store import RedisStore
from braid_orchestrator.state.registry import Registry
from braid_rpc.errors import UnavailableError
from braid_services.serving import RunningServer
from braid_services.shard.backend import ShardBackend
from braid_services.shard.main import serve_backend

OPTIONS = {"seed": 7, "max_tokens": 40, "ignore_eos": True}
PROMPTS = ("the one", "another", "a third, which is longer", "and four")
HEARTBEAT_S, EXPIRY_S, SOON_S = 0.05, 0.4, 20.0


class Cluster:
    """Replicas of two shards that register themselves, and one orchestrator that finds them."""

    def __init__(self, redis: RedisServer, sockets: Path, stack: ExitStack) -> None:
        self._redis = redis
        self._sockets = sockets
        self._stack = stack
        self._starts = 0
        self.backends: dict[str, ShardBackend] = {}
        self.servers: dict[str, RunningServer] = {}
        self.leases: dict[str, Lease] = {}

    def store(self) -> RedisStore:
        store = RedisStore(self._redis.url, "tiny")
        self._stack.callback(store.close)
        return store

    def start(self, replica: str, backend: ShardBackend) -> None:
        self._starts += 1
        self.backends[replica] = backend
        server = serve_backend(backend, [f"unix:{self._sockets}/{self._starts}.sock"])
        self._stack.callback(server.stop, 0)
        self.servers[replica] = server
        record = shard_record(backend.card.name, server.targets, None)
        self.leases[replica] = Lease(self.store(), record, HEARTBEAT_S, EXPIRY_S).__enter__()
        self._stack.callback(self.leases[replica].__exit__)

    def kill(self, replica: str) -> None:
        """As a crash: it answers nothing more, and takes no leave."""
        lease = self.leases[replica]
        lease._record = None
        lease._stopping.set()
        self.servers[replica].stop(0)

    def leave(self, replica: str) -> None:
        self.leases[replica].__exit__()

    def replicas(self, shard: str) -> Replicas:
        discovery = Discovery(Registry(self.store()), shard)
        discovery.wait(SOON_S)
        return Replicas(discovery.targets, HEARTBEAT_S)

    def sessions(self, replica: str) -> int:
        return self.backends[replica].card.num_sessions


@pytest.fixture
def cluster(redis_server: RedisServer) -> Iterator[Cluster]:
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(TemporaryDirectory()))
        yield Cluster(redis_server, sockets, stack)


def left(seed: int = 1) -> ShardBackend:
    """Another process's copy of the model: a cache of its own."""
    return tiny_backend("left", seed, width=32, num_layers=3)


@pytest.fixture
def client(cluster: Cluster, tmp_path: Path) -> Iterator[Client]:
    backends = two_backends()
    limits = LimitsConfig(max_running=4, prefill_chunk=16, recovery_timeout_s=SOON_S)
    config = braid_config(weights=shaken_weights(braid_config(), backends, tmp_path), limits=limits)
    cluster.start("left 1", backends[0])
    cluster.start("left 2", left())
    cluster.start("right", backends[1])
    eventually(lambda: len(Registry(cluster.store()).replicas("left")) == 2, SOON_S, "both have registered")
    sources = {name: cluster.replicas(name) for name in ("left", "right")}
    service = assemble_remote(config, sources, None)
    try:
        yield Client(service._engine, service)
    finally:
        service.stop()


@pytest.fixture
def expected(client: Client) -> list[list[int]]:
    """One at a time: each on one replica only."""
    return [client.generate(prompt, **OPTIONS).token_ids for prompt in PROMPTS]


def start_all(client: Client) -> tuple[list, int]:
    """All requests at once, and the first token of the first of them."""
    running = [client.submit(prompt, **OPTIONS) for prompt in PROMPTS]
    while not isinstance(event := running[0].get(timeout=SOON_S), TokenEvent):
        pass
    return running, event.token_id


def finish(client: Client, running: list, first: int) -> list[list[int]]:
    got = [client.results(events)[0].token_ids for events in running]
    return [[first, *got[0]], *got[1:]]


def test_two_replicas_share_the_work_and_change_no_token(
    cluster: Cluster, client: Client, expected: list[list[int]]
) -> None:
    running, first = start_all(client)
    eventually(
        lambda: all(cluster.sessions(name) > 0 for name in ("left 1", "left 2")), SOON_S, "sessions on both"
    )
    assert finish(client, running, first) == expected
    assert client.engine.stats().recoveries == 0
    scores = [client.score("the one and the other").logprobs for _ in range(2)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    eventually(lambda: all(cluster.sessions(name) == 0 for name in cluster.backends), SOON_S, "all closed")


def test_a_replica_that_dies_fails_nobody(
    cluster: Cluster, client: Client, expected: list[list[int]]
) -> None:
    running, first = start_all(client)
    cluster.kill("left 2")
    assert finish(client, running, first) == expected
    assert client.engine.stats().recoveries >= 1
    assert [client.generate(prompt, **OPTIONS).token_ids for prompt in PROMPTS] == expected


def test_an_idle_replica_that_dies_is_no_recovery(
    cluster: Cluster, client: Client, expected: list[list[int]]
) -> None:
    cluster.kill("left 2")
    assert [client.generate(prompt, **OPTIONS).token_ids for prompt in PROMPTS] == expected
    assert client.engine.stats().recoveries == 0


def test_a_replica_that_leaves_finishes_what_it_has_and_gets_no_more(
    cluster: Cluster, client: Client, expected: list[list[int]]
) -> None:
    running, first = start_all(client)
    cluster.leave("left 1")
    assert finish(client, running, first) == expected
    shard = client.engine._shards[0]
    eventually(
        lambda: client.generate("x", max_tokens=1) is not None and shard.num_replicas == 1,
        SOON_S,
        "it is gone",
    )
    again, first = start_all(client)
    assert cluster.sessions("left 1") == 0
    assert finish(client, again, first) == expected
    assert client.engine.stats().recoveries == 0


def test_a_replica_that_joins_is_used(cluster: Cluster, client: Client, expected: list[list[int]]) -> None:
    cluster.start("left 3", left())
    shard = client.engine._shards[0]
    eventually(
        lambda: client.generate("x", max_tokens=1) is not None and shard.num_replicas == 3,
        SOON_S,
        "it is used",
    )
    running, first = start_all(client)
    eventually(lambda: cluster.sessions("left 3") > 0, SOON_S, "sessions on the new one")
    assert finish(client, running, first) == expected


def test_a_replica_of_another_model_is_refused(
    cluster: Cluster, client: Client, expected: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    other = left(seed=9)
    cluster.start("left 3", other)
    hashes = (other.card.model_hash, cluster.backends["left 1"].card.model_hash)
    eventually(lambda: all(one in caplog.text for one in hashes), SOON_S, "the log names both models")
    assert [client.generate(prompt, **OPTIONS).token_ids for prompt in PROMPTS] == expected
    cluster.kill("left 1")
    cluster.kill("left 2")
    with pytest.raises(UnavailableError, match="no replica to run on.*" + hashes[0]):
        client.engine._shards[0].reconnect()


def test_all_replicas_gone_is_a_pause(cluster: Cluster, client: Client, expected: list[list[int]]) -> None:
    running, first = start_all(client)
    cluster.kill("left 1")
    cluster.kill("left 2")
    cluster.start("left 3", left())
    assert finish(client, running, first) == expected


def test_redis_gone_in_the_middle_changes_nothing_for_what_runs(
    cluster: Cluster, client: Client, expected: list[list[int]], redis_server: RedisServer
) -> None:
    running, first = start_all(client)
    redis_server.stop()
    assert finish(client, running, first) == expected
    assert client.generate(PROMPTS[1], **OPTIONS).token_ids == expected[1]
    redis_server.start()
    eventually(
        lambda: len(Registry(cluster.store()).replicas("left")) == 2, SOON_S, "they are registered again"
    )


def test_a_heartbeat_that_stops_is_noticed(cluster: Cluster) -> None:
    cluster.start("left", left())
    registry = Registry(cluster.store())
    eventually(lambda: len(registry.replicas("left")) == 1, SOON_S, "it has registered")
    cluster.kill("left")
    eventually(lambda: registry.replicas("left") == [], SOON_S, "its lease has expired")
