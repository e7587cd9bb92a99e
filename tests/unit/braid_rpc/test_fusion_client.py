from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from braid_rpc.errors import (
    BraidError,
    FrameError,
    ProtocolVersionError,
    ShapeMismatchError,
    UnknownSessionError,
    UnknownVersionError,
)
from braid_rpc.fusion_client import FusionClient
from braid_rpc.status import error_to_proto
from braid_rpc.steps import Segment
from braid_rpc.tensor import decode_tensor, encode_tensor
from braid_rpc.v1 import fusion_pb2, fusion_pb2_grpc, tensor_pb2

from .fakes import serving


class FakeFusion(fusion_pb2_grpc.FusionServicer):
    """Fusing doubles the first shard's states and gives the others none."""

    def __init__(self, protocol_version: int = 1) -> None:
        self.protocol_version = protocol_version
        self.plan_hash = self.plan_json = ""
        self.active = "v1"
        self.loaded = ["v1"]

    def card(self) -> fusion_pb2.FusionCard:
        return fusion_pb2.FusionCard(
            protocol_version=self.protocol_version,
            plan_hash=self.plan_hash,
            plan_json=self.plan_json,
            active_version=self.active,
            loaded_versions=self.loaded,
            num_parameters=9,
        )

    def Prepare(self, request: fusion_pb2.PrepareRequest, context: Any) -> fusion_pb2.FusionCard:
        self.plan_json = request.plan_json
        self.plan_hash = json.loads(request.plan_json)["hash"]
        return self.card()

    def Describe(self, request: Any, context: Any) -> fusion_pb2.FusionCard:
        return self.card()

    def LoadVersion(self, request: Any, context: Any) -> fusion_pb2.FusionCard:
        if request.version != "v2":
            raise UnknownVersionError(f"got version {request.version!r}, expected one of v1, v2")
        self.loaded.append("v2")
        return self.card()

    def ActivateVersion(self, request: Any, context: Any) -> fusion_pb2.FusionCard:
        self.active = request.version
        return self.card()

    def ListVersions(self, request: Any, context: Any) -> fusion_pb2.ListVersionsReply:
        versions = [
            fusion_pb2.VersionCard(
                version=v, card_json="{}", loaded=v in self.loaded, active=v == self.active
            )
            for v in ("v1", "v2")
        ]
        return fusion_pb2.ListVersionsReply(versions=versions)

    def GetMetrics(self, request: Any, context: Any) -> fusion_pb2.FusionMetrics:
        point = fusion_pb2.PointMetrics(point="p0", strategy="mlp", rows=5, mean={"weight/a": 0.25})
        return fusion_pb2.FusionMetrics(points=[point])

    def Run(self, requests: Iterator[Any], context: Any) -> Iterator[fusion_pb2.FusionReply]:
        sessions: dict[str, str] = {}
        for request in requests:
            reply = fusion_pb2.FusionReply(id=request.id)
            try:
                self.answer(request, reply, sessions)
            except BraidError as error:
                reply.error.CopyFrom(error_to_proto(error))
            yield reply

    def answer(self, request: Any, reply: fusion_pb2.FusionReply, sessions: dict[str, str]) -> None:
        match request.WhichOneof("op"):
            case "open":
                version = request.open.version or self.active
                sessions.update(dict.fromkeys(request.open.session_ids, version))
                reply.opened.version = version
            case "fuse":
                unknown = [s.session_id for s in request.fuse.segments if s.session_id not in sessions]
                if unknown:
                    raise UnknownSessionError(f"got session {unknown[0]!r}")
                first = decode_tensor(request.fuse.states[0])
                others = [tensor_pb2.Tensor() for _ in request.fuse.states[1:]]
                reply.fused.states.extend([encode_tensor(2 * first), *others])
            case "read_out":
                rows, shards = len(request.read_out.session_ids), len(request.read_out.hidden)
                weights = np.full((rows, shards), -np.log(shards), np.float32)
                reply.weights.log_weights.CopyFrom(encode_tensor(weights))
            case "crop":
                reply.cropped.SetInParent()
            case "close":
                for session_id in request.close.session_ids:
                    sessions.pop(session_id, None)
                reply.closed.SetInParent()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FusionClient]:
    with serving(FakeFusion(), tmp_path) as server, FusionClient(server.targets[0], timeout_s=20.0) as made:
        yield made


def test_a_plan_is_prepared_as_json_or_as_an_object(client: FusionClient) -> None:
    class Plan:
        def to_json(self) -> str:
            return '{"hash": "b"}'

    empty = client.describe()
    assert empty.plan_hash == empty.plan_json == ""
    assert client.prepare('{"hash": "a"}').plan_hash == "a"
    assert client.describe().plan_json == '{"hash": "a"}'
    assert client.prepare(Plan()).plan_hash == "b"


def test_versions_are_listed_loaded_and_activated(client: FusionClient) -> None:
    assert [(v.version, v.is_loaded, v.is_active) for v in client.list_versions()] == [
        ("v1", True, True),
        ("v2", False, False),
    ]
    assert client.load("v2").loaded_versions == ("v1", "v2")
    assert client.activate("v2").active_version == "v2"
    with pytest.raises(UnknownVersionError, match="got version 'v9'"):
        client.load("v9")


def test_metrics_come_per_point(client: FusionClient) -> None:
    (point,) = client.metrics()
    assert (point.point, point.strategy, point.rows, point.mean) == ("p0", "mlp", 5, {"weight/a": 0.25})


def test_states_are_fused_and_a_shard_may_receive_none(client: FusionClient) -> None:
    with client.stream() as stream:
        assert stream.open(["s"]) == "v1"
        assert stream.open(["t"], version="v2") == "v2"
        a, b = np.ones((2, 3), np.float32), np.ones((2, 5), np.float32)
        fused, nothing = stream.fuse(1, 0, [Segment("s", 0, 2)], [a, b])
        assert nothing is None and np.array_equal(fused, 2 * a)
        weights = stream.read_out(1, ["s"], [a[:1], b[:1]], np.zeros((1, 2, 4), np.float32))
        assert np.allclose(np.exp(weights), 0.5)
        assert stream.read_out(2, ["s"], [a[:1], b[:1]]).shape == (1, 2)
        stream.crop("s", 1)
        stream.close(["s"])
        with pytest.raises(UnknownSessionError):
            stream.fuse(2, 0, [Segment("s", 1, 2)], [a, b])
        assert stream.open(["s"]) == "v1"


def test_answers_of_another_shape_are_refused(tmp_path: Path) -> None:
    class Wrong(FakeFusion):
        states: list[tensor_pb2.Tensor]

        def answer(self, request: Any, reply: fusion_pb2.FusionReply, sessions: dict[str, str]) -> None:
            if request.WhichOneof("op") == "fuse":
                reply.fused.states.extend(self.states)
            else:
                reply.weights.log_weights.CopyFrom(encode_tensor(np.zeros((2, 2), np.float32)))

    wrong, a = Wrong(), np.ones((2, 3), np.float32)
    with (
        serving(wrong, tmp_path) as server,
        FusionClient(server.targets[0]) as client,
        client.stream() as stream,
    ):
        wrong.states = []
        with pytest.raises(FrameError, match="got 0 states, expected one per shard: 1"):
            stream.fuse(1, 0, [], [a])
        wrong.states = [encode_tensor(np.ones((2, 4), np.float32))]
        with pytest.raises(ShapeMismatchError, match=r"got shape \(2, 4\), expected \(2, 3\)"):
            stream.fuse(1, 0, [], [a])
        with pytest.raises(ShapeMismatchError, match=r"log_weights: got shape \(2, 2\), expected \(1, 1\)"):
            stream.read_out(1, ["s"], [a[:1]])


def test_another_protocol_version_is_refused_with_both_named(tmp_path: Path) -> None:
    with (
        serving(FakeFusion(protocol_version=2), tmp_path) as server,
        FusionClient(server.targets[0]) as client,
        pytest.raises(ProtocolVersionError, match="version 2, this client version 1"),
    ):
        client.prepare('{"hash": "a"}')
