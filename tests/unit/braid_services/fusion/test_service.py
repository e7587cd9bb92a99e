"""The fusion service over gRPC: what only a server can get wrong."""

from __future__ import annotations

import json
import threading

import grpc
import numpy as np
import pytest
import torch

from braid_rpc.cards import PROTOCOL_VERSION
from braid_rpc.channels import make_channel
from braid_rpc.errors import (
    BraidError,
    ConfigError,
    ConflictError,
    CorruptWeightsError,
    InvalidRequestError,
    ShapeMismatchError,
    UnknownVersionError,
)
from braid_rpc.fusion_client import FusionClient
from braid_rpc.status import error_from_proto
from braid_rpc.steps import Segment
from braid_rpc.v1 import fusion_pb2, fusion_pb2_grpc, tensor_pb2
from braid_services.fusion.backend import FusionStream
from braid_services.fusion.main import serve_fusion


@pytest.fixture
def server(weights_dir, tmp_path):
    with serve_fusion(weights_dir, "first", [f"unix:{tmp_path}/f", "127.0.0.1:0"]) as running:
        yield running


@pytest.fixture
def client(server, plan):
    with FusionClient(server.targets[0]) as client:
        client.prepare(plan)
        yield client


def test_it_describes_itself_before_and_after_a_plan(server, plan) -> None:
    with FusionClient(server.targets[1]) as client:
        card = client.describe()
        assert (card.protocol_version, card.plan_hash, card.num_parameters) == (PROTOCOL_VERSION, "", 0)
        with pytest.raises(ConflictError, match="no plan is prepared"), client.stream() as stream:
            stream.open(["s"])
        card = client.prepare(plan)
        assert (card.plan_hash, card.active_version) == (plan.hash(), "first")
        assert card.plan_json == plan.to_json()
        assert card.num_parameters > 0
        assert client.prepare(plan) == card


def test_versions_are_listed_loaded_and_activated_without_a_restart(client) -> None:
    assert [(v.version, v.is_loaded, v.is_active) for v in client.list_versions()] == [
        ("untrained", False, False),
        ("first", True, True),
        ("second", False, False),
    ]
    with client.stream() as stream:
        assert stream.open(["old"]) == "first"
        assert client.load("second").active_version == "first"
        assert client.activate("second").active_version == "second"
        assert stream.open(["new"]) == "second"
        assert stream.open(["again"], "first") == "first"
        assert client.describe().num_sessions == 3
    assert json.loads(client.list_versions()[2].card_json)["training"] == {"seed": 1}


def test_bad_versions_and_plans_have_typed_errors(client, weights_dir) -> None:
    with pytest.raises(UnknownVersionError, match="'third'"):
        client.activate("third")
    (weights_dir / "second" / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptWeightsError, match="SHA-256"):
        client.load("second")
    for text in ("", "[]", "{}", '{"shards": [{"name": "a"}]}'):
        with pytest.raises(ConfigError, match="plan_json: not a plan"):
            client.prepare(text)


def test_metrics_travel(client, rows) -> None:
    with client.stream() as stream:
        stream.open(["s"])
        stream.fuse(1, 0, [Segment("s", 0, 2)], [state.numpy() for state in rows(2)])
    points = client.metrics()
    assert [entry.point for entry in points] == ["1", "2", "3", "4", "readout"]
    assert points[0].rows == 2
    assert points[0].mean["weight/code"] + points[0].mean["weight/prose"] == pytest.approx(1.0)


def test_a_client_that_leaves_takes_its_sessions_along(client, rows) -> None:
    stream = client.stream()
    stream.open(["a", "b"])
    stream.fuse(1, 0, [Segment("a", 0, 2)], [state.numpy() for state in rows(2)])
    assert client.describe().num_sessions == 2
    stream.end()
    ticks = threading.Event()
    for _ in range(200):
        if client.describe().num_sessions == 0:
            break
        ticks.wait(0.02)
    assert client.describe().num_sessions == 0


def test_broken_messages_get_a_typed_reply_and_the_stream_goes_on(client, server) -> None:
    good = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[1, 6], data=bytes(24))
    wide = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[1, 8], data=bytes(32))
    cut = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[1, 8], data=bytes(31))
    whole_numbers = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_INT64, shape=[1, 8], data=bytes(64))
    segment = [tensor_pb2.Segment(session_id="s", position=0, num_rows=1)]
    endless = [tensor_pb2.Segment(session_id="s", position=0, num_rows=2**32 - 1)]

    def fuse(segments, states) -> fusion_pb2.FusionRequest:
        return fusion_pb2.FusionRequest(fuse=fusion_pb2.Fuse(step_id=1, segments=segments, states=states))

    requests = [
        fusion_pb2.FusionRequest(open=fusion_pb2.OpenFusionSessions(session_ids=["s"])),
        fusion_pb2.FusionRequest(),
        fuse(segment, [good, cut]),
        fuse(segment, [good, whole_numbers]),
        fuse(segment, [good]),
        fuse(endless, [good, wide]),
        fuse(segment, [good, wide]),
    ]
    for number, request in enumerate(requests):
        request.id = number
    with make_channel(server.targets[0]) as channel:
        replies = list(fusion_pb2_grpc.FusionStub(channel).Run(iter(requests)))
    assert [reply.id for reply in replies] == list(range(7))
    kinds = [reply.WhichOneof("result") for reply in replies]
    assert kinds == ["opened", "error", "error", "error", "error", "error", "fused"]
    assert isinstance(error_from_proto(replies[1].error), InvalidRequestError)
    assert "got 31 bytes of data, expected 32" in replies[2].error.message
    assert "got dtype int64" in replies[3].error.message
    assert isinstance(error_from_proto(replies[5].error), ShapeMismatchError)
    fused = replies[6]
    assert [list(state.shape) for state in fused.fused.states] == [[1, 6], [1, 8]]
    assert fused.timings.compute_us > 0


def test_an_unexpected_error_is_a_reply_and_the_stream_goes_on(client, rows, monkeypatch, caplog) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    states = [state.numpy() for state in rows(1)]
    with client.stream() as stream:
        stream.open(["s"])
        with monkeypatch.context() as broken:
            broken.setattr(FusionStream, "fuse", fail)
            with pytest.raises(BraidError, match="number") as caught:
                stream.fuse(1, 0, (Segment("s", 0, 1),), states)
        assert "secret" not in caught.value.message
        assert "secret detail" in caplog.text
        stream.fuse(2, 0, (Segment("s", 0, 1),), states)


def test_many_callers_at_once_get_what_each_would_get_alone(client, server, rows) -> None:
    def run(seed: int) -> list[np.ndarray]:
        results = []
        with client.stream() as stream:
            stream.open(["s"])
            for step in range(10):
                for point in range(4):
                    states = [state.numpy() for state in rows(1, seed * 100 + step * 4 + point)]
                    fused = stream.fuse(step, point, [Segment("s", step, 1)], states)
                    results.append(fused[0].copy())
        return results

    expected = [run(seed) for seed in range(4)]
    got: dict[int, list[np.ndarray]] = {}
    threads = [threading.Thread(target=lambda s=seed: got.__setitem__(s, run(s))) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed in range(4):
        assert all(np.array_equal(x, y) for x, y in zip(expected[seed], got[seed], strict=True))


def test_bad_settings_of_a_service_are_refused(tmp_path) -> None:
    with pytest.raises(InvalidRequestError, match="threads: got -1"):
        serve_fusion(None, None, ["127.0.0.1:0"], threads=-1)
    with pytest.raises(InvalidRequestError, match="target"):
        serve_fusion(None, None, ["nowhere"])


def test_threads_are_set_and_health_is_on(server) -> None:
    assert torch.get_num_threads() == 1
    with grpc.insecure_channel(server.targets[1]) as channel:
        grpc.channel_ready_future(channel).result(10)
