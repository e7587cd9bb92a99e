"""New weights while the braid answers: what runs keeps its version and its tokens, what comes after gets them."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from braids import TRANSPORTS, Client, braid_config, running, shake, shaken_weights

from braid_fusion.packed_weights import PackedWeights, pack_stack
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.engine.requests import (
    Event,
    GenerateRequest,
    SamplingOptions,
    Started,
    TokenEvent,
)
from braid_rpc.errors import BraidError, WeightMismatchError
from braid_services.shard.backend import ShardBackend

POINTS, LIMITS = braid_config().points, braid_config().limits
PROMPT = "the one and the other"
OPTIONS = {"seed": 5, "max_tokens": 40, "temperature": 0.9, "ignore_eos": True}


def packed(plan: BraidPlan, seed: int) -> PackedWeights:
    stack = FusionStack(plan)
    shake(stack, seed, by=0.3)
    return pack_stack(stack, {"seed": seed})


@pytest.fixture(params=TRANSPORTS)
def client(request: pytest.FixtureRequest, backends: list[ShardBackend], tmp_path: Path) -> Iterator[Client]:
    """Its folder of versions is its own."""
    config: BraidConfig = braid_config(weights=shaken_weights(braid_config(), backends, tmp_path / "weights"))
    with TemporaryDirectory() as sockets, running(config, backends, request.param, Path(sockets)) as client:
        yield client


def ask_slowly(client: Client, events: queue.Queue[Event | BraidError]) -> None:
    """A generation by a model that takes its time, so that what happens meanwhile happens in its middle."""

    def put(item: Event | BraidError) -> None:
        time.sleep(0.02)
        events.put(item)

    client.engine.submit(GenerateRequest(PROMPT, SamplingOptions(**OPTIONS)), put)


def version_of(events: queue.Queue[Event | BraidError]) -> str:
    started = events.get(timeout=60)
    assert isinstance(started, Started)
    return started.weights_version


def test_what_runs_keeps_its_tokens_while_new_weights_come_in_and_the_next_gets_them(client: Client) -> None:
    plan = client.engine.plan
    before = client.generate(PROMPT, **OPTIONS).token_ids
    assert client.engine.weights_version == "v3"
    running_: queue.Queue[Event | BraidError] = queue.Queue()
    ask_slowly(client, running_)
    assert version_of(running_) == "v3"
    first = running_.get(timeout=60)
    assert isinstance(first, TokenEvent)
    weights = packed(plan, 8)
    published = asyncio.run(client.service.publish(weights.card_json, weights.data, "v8"))
    assert (published.version, published.active_version, published.in_memory_only) == ("v8", "v8", False)
    assert running_.qsize() < OPTIONS["max_tokens"] - 5, "it was over before: nothing is shown"
    assert client.engine.weights_version == "v8"
    new = client.submit(PROMPT, **OPTIONS)
    assert version_of(new) == "v8"
    after = client.results(new)[0].token_ids
    assert [first.token_id, *client.results(running_)[0].token_ids] == before
    assert after != before
    client.engine.activate("v3")
    assert client.generate(PROMPT, **OPTIONS).token_ids == before
    client.engine.activate("v8")
    assert client.generate(PROMPT, **OPTIONS).token_ids == after


def test_the_new_tokens_are_those_of_the_weights(
    client: Client, backends: list[ShardBackend], tmp_path: Path
) -> None:
    """The same as a braid gives that begins with them."""
    weights = packed(client.engine.plan, 8)
    version = client.engine.publish(weights.card_json, weights.data).version
    got = client.generate(PROMPT, **OPTIONS).token_ids
    fresh = braid_config()
    with running(fresh, backends, "in process", tmp_path) as other:
        assert other.generate(PROMPT, **OPTIONS).token_ids != got
        published = other.engine.publish(weights.card_json, weights.data)
        assert (published.version, published.in_memory_only) == (version, True)
        assert other.generate(PROMPT, **OPTIONS).token_ids == got


def test_what_is_refused_changes_nothing(client: Client) -> None:
    expected = client.generate(PROMPT, **OPTIONS).token_ids
    other = packed(braid_plan_of_others(client.engine.plan), 8)
    with pytest.raises(WeightMismatchError, match="model_hash"):
        asyncio.run(client.service.publish(other.card_json, other.data))
    assert client.engine.weights_version == "v3"
    assert client.generate(PROMPT, **OPTIONS).token_ids == expected


def braid_plan_of_others(plan: BraidPlan) -> BraidPlan:
    return replace(plan, shards=(replace(plan.shards[0], model_hash="another"), *plan.shards[1:]))


def test_the_limit_of_what_is_taken_in_is_known_at_the_front(client: Client) -> None:
    weights = packed(client.engine.plan, 8)
    assert len(weights.data) < client.service.max_publish_bytes < 3 * len(weights.data) + 100_000
