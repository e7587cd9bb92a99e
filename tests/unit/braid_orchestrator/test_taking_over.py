"""A request that was taken over and refused is not lost: somebody may take it over again."""

from __future__ import annotations

import pytest

from braid_orchestrator.config.values import StateConfig
from braid_orchestrator.engine.requests import GenerateRequest, SamplingOptions
from braid_orchestrator.state.journal import Journals
from braid_orchestrator.state.link import StateLink
from braid_orchestrator.state.memory import MemoryStore
from braid_rpc.errors import ConflictError, QueueFullError


class Full:
    """An engine without room, at first."""

    weights_version = "v1"
    is_full = True

    def resume(self, request: GenerateRequest, events: object, sink: object) -> str:
        if self.is_full:
            raise QueueFullError("queue full", retry_after_s=1.0)
        return request.request_id


def test_what_a_full_engine_refuses_can_be_taken_over_again() -> None:
    store, engine = MemoryStore(), Full()
    request = GenerateRequest("the one", SamplingOptions(seed=1), request_id="r")
    Journals(store).write("somebody dead", {"r": (request, 0, [])})
    link = StateLink(store, StateConfig(), engine)  # type: ignore[arg-type]
    link._beat()
    with pytest.raises(QueueFullError):
        link.resume(engine, link.take_over("r"), lambda item: None)  # type: ignore[arg-type]
    link._writer.write_all()
    assert link.orphans() == ["r"]
    engine.is_full = False
    journal = link.take_over("r")
    assert journal.request == request
    assert link.resume(engine, journal, lambda item: None) == "r"  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="elsewhere"):
        link.take_over("r")
