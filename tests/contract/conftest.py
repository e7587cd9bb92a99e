"""A braid of two tiny shards behind each transport, for suites that say its ``POINTS`` and ``LIMITS``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from braids import TRANSPORTS, Client, braid_config, running, shaken_weights, two_backends

from braid_orchestrator.config.values import BraidConfig
from braid_services.shard.backend import ShardBackend


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends()


@pytest.fixture(scope="module")
def config(
    request: pytest.FixtureRequest, backends: list[ShardBackend], tmp_path_factory: pytest.TempPathFactory
) -> BraidConfig:
    """With weights that are as if trained."""
    parts = {"points": request.module.POINTS, "limits": request.module.LIMITS}
    weights = shaken_weights(braid_config(**parts), backends, tmp_path_factory.mktemp("weights"))
    return braid_config(**parts, weights=weights)


@pytest.fixture(params=TRANSPORTS, scope="module")
def client(
    request: pytest.FixtureRequest, config: BraidConfig, backends: list[ShardBackend]
) -> Iterator[Client]:
    with TemporaryDirectory() as sockets, running(config, backends, request.param, Path(sockets)) as client:
        yield client
