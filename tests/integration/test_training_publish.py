"""A trained version on its way to a running braid or fusion service, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from braids import braid_config, shake, two_backends
from served import served

from braid_fusion.packed_weights import pack_stack
from braid_fusion.stack import FusionStack
from braid_fusion.weights import save_stack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import FusionConfig, PointConfig
from braid_orchestrator.training.publishing import PublishTarget, ask_target, publish_version
from braid_rpc.errors import (
    BraidError,
    ConflictError,
    InvalidRequestError,
    UnavailableError,
    WeightMismatchError,
)
from braid_rpc.fusion_client import FusionClient
from braid_services.fusion.main import serve_fusion
from braid_services.shard.backend import ShardBackend


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends()


def stack_of(backends: list[ShardBackend], **parts: object) -> FusionStack:
    return FusionStack(resolve_plan(braid_config(**parts), [backend.card for backend in backends]))  # type: ignore[arg-type]


def trained(backends: list[ShardBackend], folder: Path, **parts: object) -> Path:
    stack = stack_of(backends, **parts)
    shake(stack, 4)
    save_stack(stack, folder / "trained", {"note": "random"})
    return folder / "trained"


def test_a_running_braid_takes_a_version_and_uses_it(backends, tmp_path: Path) -> None:
    weights = trained(backends, tmp_path)
    with served(backends, braid_config()) as braid:
        first = publish_version(weights, braid.url)
        assert first.active_version == first.version == braid.service.describe().weights_version
        assert publish_version(weights, braid.url) == first, "the same again is harmless"
        assert publish_version(weights, braid.url, "by-name").active_version == "by-name"
        other = trained(backends, tmp_path / "other", points=(PointConfig(at=1, strategy="weighted"),))
        with pytest.raises(WeightMismatchError, match=r"http://.*points"):
            publish_version(other, braid.url)
        assert braid.service.describe().weights_version == "by-name"


def test_a_fusion_service_takes_a_version_before_anyone_prepared_it(backends, tmp_path: Path) -> None:
    weights = trained(backends, tmp_path)
    with serve_fusion(None, None, [f"unix:{tmp_path}/fusion.sock"]) as server:
        published = publish_version(weights, server.targets[0])
        with FusionClient(server.targets[0]) as client:
            assert client.describe().active_version == published.version
        # Another plan is refused, and never put in place of the one that is served.
        other = trained(backends, tmp_path / "other", points=(PointConfig(at=1, strategy="weighted"),))
        with pytest.raises(WeightMismatchError):
            publish_version(other, server.targets[0])


def test_who_takes_no_version_in_is_told_before_there_is_one(backends, tmp_path: Path) -> None:
    with served(backends, braid_config()) as braid:
        ask_target(braid.url)
        with pytest.raises(BraidError, match=rf"^{braid.url}/elsewhere: "):
            ask_target(f"{braid.url}/elsewhere")
    closed = replace(braid_config(), fusion=FusionConfig(placement="embedded", max_publish_bytes=0))
    with (
        served(backends, closed) as braid,
        pytest.raises(ConflictError, match=r"http://.*: its fusion\.max_publish_bytes is 0"),
    ):
        ask_target(braid.url)
    with serve_fusion(None, None, [f"unix:{tmp_path}/fusion.sock"], max_publish_bytes=0) as server:
        asked = ask_target(server.targets[0])
        assert asked == PublishTarget(server.targets[0]), "without a plan it can't say"
        with FusionClient(server.targets[0]) as client:
            client.prepare(stack_of(backends).plan)
        with pytest.raises(ConflictError, match=r"fusion\.sock: its fusion\.max_publish_bytes is 0"):
            ask_target(server.targets[0])


def test_what_will_be_refused_is_told_before_there_is_a_version(backends, tmp_path: Path) -> None:
    """And nothing else: what is taken in may have another seed, as when it is published."""
    own = stack_of(backends)
    other = stack_of(backends, points=(PointConfig(at=1, strategy="weighted"),))
    reseeded = FusionStack(replace(own.plan, seed=9))
    with (
        served(backends, braid_config()) as braid,
        serve_fusion(None, None, [f"unix:{tmp_path}/fusion.sock"]) as server,
    ):
        with FusionClient(server.targets[0]) as client:
            ask_target(server.targets[0]).check(other)  # without a plan it takes any
            client.prepare(own.plan)
        for target in (braid.url, server.targets[0]):
            asked = ask_target(target)
            asked.check(own)
            asked.check(reseeded)
            with pytest.raises(WeightMismatchError) as refused:
                asked.check(other)
            told = str(refused.value)
            assert told.startswith(
                f"{target}: got plan {own.plan.hash()}, expected that of this run, {other.plan.hash()}: "
            )
            assert f"points[0].strategy: this run has 'weighted', {target} has 'mlp'" in told
            save_stack(reseeded, tmp_path / "reseeded")
            publish_version(tmp_path / "reseeded", target)


def test_weights_of_more_bytes_than_are_taken_in_are_told_before_there_are_any(backends) -> None:
    stack = stack_of(backends)
    num_bytes = len(pack_stack(stack).data)
    PublishTarget("here:1", stack.plan, num_bytes).check(stack)
    told = rf"^here:1: got weights of {num_bytes} bytes .*, expected at most {num_bytes - 1}, its fusion\.max_pub"
    with pytest.raises(InvalidRequestError, match=told):
        PublishTarget("here:1", stack.plan, num_bytes - 1).check(stack)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"active": "v1"}, PublishTarget("http://here")),  # as earlier braids
        ({"active": "v1", "plan": {"shards": []}}, "http://here: got a plan that can't be read"),
        ({"active": 1}, "http://here: got 200 with .*, expected a braid's answer"),
        (
            {"active": "v1", "max_publish_bytes": "9"},
            "http://here: got 200 with .*, expected a braid's answer",
        ),
        (["active"], "http://here: got 200 with .*, expected a braid's answer"),
    ],
)
def test_what_a_braid_doesnt_say_cannot_be_compared(
    monkeypatch: pytest.MonkeyPatch, told: object, expected: PublishTarget | str
) -> None:
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(200, json=told))
    if isinstance(expected, PublishTarget):
        assert ask_target("http://here") == expected
        return
    with pytest.raises(BraidError, match=expected):
        ask_target("http://here")


def test_nobody_there_and_somebody_else_there_are_told_apart(backends, tmp_path: Path) -> None:
    weights = trained(backends, tmp_path)
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9: no answer"):
        publish_version(weights, "http://127.0.0.1:9")
