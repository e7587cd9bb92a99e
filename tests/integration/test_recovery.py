"""A part of the braid goes away in the middle: no accepted request is lost and no token changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from braids import Client, braid_config, shake, shaken_weights, two_backends
from programs import eventually

from braid_fusion import LyapunovMonitor
from braid_fusion.packed_weights import PackedWeights, pack_stack
from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import assemble_remote
from braid_orchestrator.config.values import BraidConfig, LimitsConfig
from braid_orchestrator.engine.requests import TokenEvent
from braid_rpc.errors import UnavailableError
from braid_rpc.fusion_client import FusionClient
from braid_rpc.stability import StabilityOptions
from braid_services.fusion.main import serve_fusion
from braid_services.serving import RunningServer
from braid_services.shard.backend import ShardBackend
from braid_services.shard.main import serve_backend

OPTIONS = {"seed": 7, "max_tokens": 60, "ignore_eos": True}


class Parts:
    """Two shards and a fusion service, each of which can be stopped and started again at another address."""

    def __init__(self, config: BraidConfig, backends: list[ShardBackend], sockets: Path) -> None:
        self._config = config
        self._backends = {backend.card.name: backend for backend in backends}
        self._sockets = sockets
        self._starts = 0
        self.servers: dict[str, RunningServer] = {}
        for name in [*self._backends, "fusion"]:
            self.start(name)

    def start(self, name: str) -> None:
        self._starts += 1
        target = f"unix:{self._sockets}/{name}-{self._starts}.sock"
        if name == "fusion":
            self.servers[name] = serve_fusion(self._config.fusion.weights, None, [target])
        else:
            self.servers[name] = serve_backend(self._backends[name], [target])

    def target(self, name: str) -> str:
        return self.servers[name].targets[0]

    def stop(self, name: str) -> None:
        self.servers[name].stop(0)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    backends = two_backends()
    limits = LimitsConfig(max_running=4, prefill_chunk=16, recovery_timeout_s=2.0)
    weights = shaken_weights(braid_config(), backends, tmp_path)
    config = braid_config(weights=weights, limits=limits, placement="service")
    with TemporaryDirectory() as sockets:
        parts = Parts(config, backends, Path(sockets))
        try:
            yield parts
        finally:
            for name in parts.servers:
                parts.stop(name)


@pytest.fixture
def client(parts: Parts) -> Iterator[Client]:
    shards = {name: (lambda name=name: parts.target(name)) for name in ("left", "right")}
    service = assemble_remote(parts._config, shards, lambda: parts.target("fusion"))
    try:
        yield Client(service._engine, service)
    finally:
        service.stop()


@pytest.mark.parametrize("name", ["left", "right", "fusion"])
def test_losing_a_part_changes_no_token(parts: Parts, client: Client, name: str) -> None:
    expected = [client.generate(prompt, **OPTIONS).token_ids for prompt in ("the one", "another")]
    running = [client.submit(prompt, **OPTIONS) for prompt in ("the one", "another")]
    first = running[0].get(timeout=30)
    while not isinstance(first, TokenEvent):
        first = running[0].get(timeout=30)
    parts.stop(name)
    parts.start(name)
    got = [client.results(events)[0].token_ids for events in running]
    assert [[first.token_id, *got[0]], got[1]] == expected
    assert client.engine.stats().recoveries >= 1


@pytest.mark.parametrize("name", ["left", "fusion"])
def test_a_watched_text_goes_on_with_its_estimate_and_its_temperatures(
    parts: Parts, client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every rise counts, so that temperatures move within a short text.
    monkeypatch.setattr(LyapunovMonitor, "lower_bound", lambda self, _: self.estimate or 0.0)
    stability = StabilityOptions(auto_temperature=True, window=8, min_tokens=4)
    expected = client.generate("the one", stability=stability, **OPTIONS)
    running = client.submit("the one", stability=stability, **OPTIONS)
    first = running.get(timeout=30)
    while not isinstance(first, TokenEvent):
        first = running.get(timeout=30)
    parts.stop(name)
    parts.start(name)
    got = client.results(running)[0]
    assert [first.token_id, *got.token_ids] == expected.token_ids
    temperatures = [one.temperature for one in (first.stability, *got.stability) if one is not None]
    told = [one.temperature for one in expected.stability if one is not None]
    assert temperatures == pytest.approx(told, abs=1e-4)  # summed in another order after the loss
    assert min(temperatures) < 0.9 and len(temperatures) == 60
    assert got.summary is not None and expected.summary is not None
    assert got.summary.mean_entropy == pytest.approx(expected.summary.mean_entropy, abs=1e-4)
    assert client.engine.stats().recoveries >= 1


def test_a_part_that_stays_away_is_named_and_welcome_back(parts: Parts, client: Client) -> None:
    running = client.submit("the one", **{**OPTIONS, "max_tokens": 200})
    running.get(timeout=30)
    parts.stop("right")
    with pytest.raises(UnavailableError, match="shard 'right'"):
        client.results(running)
    with pytest.raises(UnavailableError, match="shard 'right'") as refused:
        client.submit("the one", **OPTIONS)
    assert refused.value.retry_after_s > 0
    parts.start("right")
    eventually(lambda: is_ready(client), 20, "a braid that is ready")
    assert client.generate("the one", **OPTIONS).token_ids


def test_the_active_version_outlives_the_fusion_service(parts: Parts, client: Client) -> None:
    shaken_weights(braid_config(), [*parts._backends.values()], Path(parts._config.fusion.weights), seed=4)
    assert client.engine.weights_version == "v3"
    client.engine.activate("v4")
    expected = client.generate("the one", **OPTIONS).token_ids
    shaken_weights(braid_config(), [*parts._backends.values()], Path(parts._config.fusion.weights), seed=5)
    parts.stop("fusion")
    parts.start("fusion")
    assert client.generate("the one", **OPTIONS).token_ids == expected
    assert client.engine.weights_version == "v4"


def packed(client: Client, seed: int) -> PackedWeights:
    stack = FusionStack(client.engine.plan)
    shake(stack, seed)
    return pack_stack(stack)


def test_what_was_activated_at_the_fusion_service_itself_is_noticed_and_stays(
    parts: Parts, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid_orchestrator.engine.engine._PING_EVERY_S", 0.1)
    client.generate("the one", **{**OPTIONS, "max_tokens": 1})
    with FusionClient(parts.target("fusion")) as fusion:
        v4, v5 = packed(client, 4), packed(client, 5)
        fusion.publish(v4.card_json, v4.data, "v4")
        eventually(lambda: client.engine.weights_version == "v4", 20, "version v4")
        before = client.generate("the one", **OPTIONS).token_ids
        monkeypatch.setattr("braid_orchestrator.engine.engine._PING_EVERY_S", 60.0)
        client.generate("the one", **{**OPTIONS, "max_tokens": 1})
        # Before anybody could hear of the next one, all connections are made anew.
        fusion.publish(v5.card_json, v5.data, "v5")
    parts.stop("left")
    parts.start("left")
    assert client.generate("the one", **OPTIONS).token_ids != before
    assert client.engine.stats().recoveries >= 1
    assert client.engine.weights_version == "v5"


def test_a_version_that_was_in_memory_only_is_lost_with_the_service_and_the_braid_goes_on(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    parts._config = replace(parts._config, fusion=replace(parts._config.fusion, weights=None))
    parts.stop("fusion")
    parts.start("fusion")
    shards = {name: (lambda name=name: parts.target(name)) for name in ("left", "right")}
    service = assemble_remote(parts._config, shards, lambda: parts.target("fusion"))
    try:
        client = Client(service._engine, service)
        untrained = client.generate("the one", **OPTIONS).token_ids
        weights = packed(client, 4)
        assert client.engine.publish(weights.card_json, weights.data, "v4").in_memory_only
        assert client.engine.weights_version == "v4"
        assert client.generate("the one", **OPTIONS).token_ids != untrained
        parts.stop("fusion")
        parts.start("fusion")
        assert client.generate("the one", **OPTIONS).token_ids == untrained
        assert client.engine.weights_version == "untrained"
        assert "has lost the version that was active" in caplog.text
        client.engine.publish(weights.card_json, weights.data, "v4")
        assert client.generate("the one", **OPTIONS).token_ids != untrained
    finally:
        service.stop()


def test_an_idle_braid_notices_that_a_part_is_gone(
    parts: Parts, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid_orchestrator.engine.engine._PING_EVERY_S", 0.1)
    client.generate("the one", **{**OPTIONS, "max_tokens": 1})
    client.engine.check_ready()
    parts.stop("right")
    eventually(lambda: not is_ready(client), 20, "a braid that is not ready")
    client.engine.check_alive()
    parts.start("right")
    eventually(lambda: is_ready(client), 20, "a braid that is ready")


def is_ready(client: Client) -> bool:
    try:
        client.engine.check_ready()
    except UnavailableError:
        return False
    return True
