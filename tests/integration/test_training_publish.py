"""A trained version on its way to a running braid or fusion service, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from braids import braid_config, shake, two_backends
from served import served

from braid_fusion.stack import FusionStack
from braid_fusion.weights import save_stack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import PointConfig
from braid_orchestrator.training.publishing import check_target, publish_version
from braid_rpc.errors import BraidError, ConflictError, UnavailableError, WeightMismatchError
from braid_rpc.fusion_client import FusionClient
from braid_services.fusion.main import serve_fusion
from braid_services.shard.backend import ShardBackend


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends()


def trained(backends: list[ShardBackend], folder: Path, **parts: object) -> Path:
    stack = FusionStack(resolve_plan(braid_config(**parts), [backend.card for backend in backends]))  # type: ignore[arg-type]
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
        check_target(braid.url)
        with pytest.raises(BraidError, match=rf"^{braid.url}/elsewhere: "):
            check_target(f"{braid.url}/elsewhere")
    plan = resolve_plan(braid_config(), [backend.card for backend in backends])
    with serve_fusion(None, None, [f"unix:{tmp_path}/fusion.sock"], max_publish_bytes=0) as server:
        check_target(server.targets[0])  # without a plan it can't say
        with FusionClient(server.targets[0]) as client:
            client.prepare(plan)
        with pytest.raises(ConflictError, match=r"fusion\.sock: its fusion\.max_publish_bytes is 0"):
            check_target(server.targets[0])
    with serve_fusion(None, None, [f"unix:{tmp_path}/other.sock"]) as server:
        with FusionClient(server.targets[0]) as client:
            client.prepare(plan)
        check_target(server.targets[0])


def test_nobody_there_and_somebody_else_there_are_told_apart(backends, tmp_path: Path) -> None:
    weights = trained(backends, tmp_path)
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9: no answer"):
        publish_version(weights, "http://127.0.0.1:9")
