"""Behind Ray Serve's gRPC proxy no interceptor stands: every method asks for the key itself."""

from __future__ import annotations

import inspect

import grpc
import pytest

from braid_orchestrator.serving.api_keys import ApiKeys
from braid_orchestrator.serving.grpc_servicer import BraidRpc
from braid_rpc.v1 import braid_pb2

from ..fake_service import FakeService

pytest.importorskip("ray", reason="needs ray, which is absent")

METHODS = {method.name: method for method in braid_pb2.DESCRIPTOR.services_by_name["Braid"].methods}


class Context:
    """What a call behind the proxy has."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = list(metadata)
        self.code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self.metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        pass

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        pass


# Ray's own modules warn when they are imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", METHODS)
async def test_every_method_asks_for_a_key(name: str) -> None:
    from braid_orchestrator.serve_app import OrchestratorReplica

    service = FakeService()
    replica = OrchestratorReplica.__new__(OrchestratorReplica)
    replica.keys = ApiKeys(["open-sesame"])
    replica._rpc = BraidRpc(lambda: service)
    request = getattr(braid_pb2, METHODS[name].input_type.name)()
    if name in ("Generate", "Score"):
        request.text = "x"

    async def code_for(*metadata: tuple[str, str]) -> grpc.StatusCode | None:
        context = Context(*metadata)
        answer = getattr(replica, name)(request, context)
        if inspect.isasyncgen(answer):
            async for _ in answer:
                pass
        else:
            await answer
        return context.code

    for metadata in ([], [("authorization", "Bearer sesame")], 2 * [("authorization", "Bearer open-sesame")]):
        assert await code_for(*metadata) is grpc.StatusCode.UNAUTHENTICATED
    assert service.requests == service.scored == []
    assert await code_for(("authorization", "Bearer open-sesame")) is None
