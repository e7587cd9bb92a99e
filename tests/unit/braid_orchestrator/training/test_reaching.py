"""Which replica of a shard a worker asks, and which one when that doesn't answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import pytest

from braid_orchestrator.training.reaching import _Turns, serve_places
from braid_rpc.errors import ConfigError, UnavailableError


class Replicas:
    """As a `Discovery`; what is registered may change."""

    def __init__(self, targets: Sequence[str]) -> None:
        self.registered = list(targets)

    def targets(self) -> list[str]:
        return self.registered

    def any_target(self) -> str:
        raise UnavailableError("'left': no replica is registered")


@pytest.mark.parametrize(
    ("worker", "asked"), [(0, ["a", "b", "c", "a"]), (1, ["b", "c", "a", "b"]), (5, ["c", "a", "b", "c"])]
)
def test_workers_begin_with_replicas_of_their_own_and_go_round(worker: int, asked: list[str]) -> None:
    turns = _Turns(Replicas(["a", "b", "c"]), worker)  # type: ignore[arg-type]
    assert [turns() for _ in asked] == asked


def test_what_is_registered_counts_when_it_is_asked() -> None:
    replicas = Replicas(["a", "b"])
    turns = _Turns(replicas, 1)  # type: ignore[arg-type]
    assert turns() == "b"
    replicas.registered = ["c"]
    assert [turns(), turns()] == ["c", "c"]
    replicas.registered = []
    with pytest.raises(UnavailableError, match="no replica is registered"):
        turns()


def test_without_ray_serve_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[serve\]'"):
        serve_places(cast(Any, None), "braid")
