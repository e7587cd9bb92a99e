from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from braid_rpc import stream_client
from braid_rpc.errors import (
    CacheFullError,
    CapacityError,
    DeadlineError,
    FrameError,
    StepOrderError,
    UnavailableError,
    UnknownSessionError,
)
from braid_rpc.stream_client import ShardStreamClient
from braid_rpc.stream_transport import PolledTransport, QueuedTransport
from braid_rpc.tensor import decode_tensor, encode_tensor
from braid_rpc.v1 import shard_pb2, shard_pb2_grpc
from braid_services.serving import RunningServer

from .fakes import WIDTH, FakeShard, serving

LONG_S = 20.0


@pytest.fixture(params=[PolledTransport, QueuedTransport])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(stream_client, "open_transport", request.param)
    return request.param


@pytest.fixture
def shard() -> FakeShard:
    return FakeShard()


@pytest.fixture
def server(shard: FakeShard, tmp_path: Path) -> Iterator[RunningServer]:
    with serving(shard, tmp_path) as running:
        yield running
        shard.hold.set()


@pytest.fixture
def client(transport: Any, server: RunningServer) -> Iterator[ShardStreamClient]:
    with ShardStreamClient(server.targets[0]) as made:
        yield made


def open_request(session_id: str = "a", num_tokens: int = 5) -> shard_pb2.ShardRequest:
    session = shard_pb2.OpenSession(session_id=session_id, num_tokens=num_tokens)
    return shard_pb2.ShardRequest(open=shard_pb2.OpenSessions(sessions=[session]))


def step_request(hidden: np.ndarray) -> shard_pb2.ShardRequest:
    return shard_pb2.ShardRequest(
        step=shard_pb2.Step(start_layer=2, end_layer=3, hidden=encode_tensor(hidden))
    )


def test_the_fast_transport_is_what_is_used_here(server: RunningServer) -> None:
    with ShardStreamClient(server.targets[0]) as client:
        assert isinstance(client._transport, PolledTransport)


def test_replies_come_in_the_order_of_the_requests(client: ShardStreamClient, shard: FakeShard) -> None:
    ids = [client.send(open_request(f"s{i}")) for i in range(20)]
    assert ids == list(range(1, 21))
    assert [client.receive(LONG_S).id for _ in ids] == ids
    assert len(shard.sessions) == 20


def test_both_targets_of_a_server_answer(transport: Any, server: RunningServer) -> None:
    for target in server.targets:
        with ShardStreamClient(target) as client:
            assert client.call(open_request(), LONG_S).WhichOneof("result") == "opened"


def test_a_typed_error_in_a_reply_leaves_the_stream_usable(client: ShardStreamClient) -> None:
    with pytest.raises(CacheFullError, match="got 1000 tokens, expected at most 100") as caught:
        client.call(open_request(num_tokens=1000), LONG_S)
    assert caught.value.retry_after_s == 2.0
    with pytest.raises(UnknownSessionError):
        client.call(shard_pb2.ShardRequest(crop=shard_pb2.Crop(session_id="x")), LONG_S)
    assert client.usable
    assert client.call(open_request(), LONG_S).id == 3


def test_an_error_among_several_requests_belongs_to_its_own(client: ShardStreamClient) -> None:
    client.send(open_request("a"))
    client.send(open_request("b", 1000))
    client.send(open_request("c"))
    assert client.receive(LONG_S).id == 1
    with pytest.raises(CacheFullError):
        client.receive(LONG_S)
    assert client.receive(LONG_S).id == 3
    assert client.num_awaited == 0


def test_large_frames_may_cross_each_other(client: ShardStreamClient) -> None:
    client.call(open_request(), LONG_S)
    first = shard_pb2.Step(
        end_layer=2,
        segments=[{"session_id": "a", "num_rows": 1}],
        token_ids=encode_tensor(np.zeros(1, np.int64)),
    )
    client.call(shard_pb2.ShardRequest(step=first), LONG_S)
    hidden = np.ones((2**18, WIDTH), np.float32)  # 4 MiB, far beyond any flow control window
    for _ in range(4):
        client.send(shard_pb2.ShardRequest(open=shard_pb2.OpenSessions()))
        step = step_request(hidden)
        step.step.start_layer, step.step.end_layer = 2, 2
        client.send(step)
    for _ in range(4):
        client.receive(LONG_S)
        out = decode_tensor(client.receive(LONG_S).frame.hidden, shape=(None, WIDTH))
        assert np.array_equal(out, hidden)


def test_a_timeout_is_a_deadline_error_and_ends_the_stream(
    client: ShardStreamClient, shard: FakeShard
) -> None:
    client.call(open_request(), LONG_S)
    shard.hold.clear()
    client.send(open_request("b"))
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no answer within 0\.2 s"):
        client.receive(0.2)
    assert time.monotonic() - began < 5
    assert not client.usable
    with pytest.raises(UnavailableError, match="no longer usable"):
        client.send(open_request("c"))
    shard.hold.set()
    assert shard.stream_ended.wait(LONG_S)
    assert shard.sessions == {}


def test_nobody_there_is_unavailable(transport: Any, tmp_path: Path) -> None:
    with ShardStreamClient(f"unix:{tmp_path / 'nobody.sock'}") as client:
        with pytest.raises(UnavailableError):
            client.call(open_request(), LONG_S)
        assert not client.usable


def test_a_server_that_stops_is_unavailable(
    client: ShardStreamClient, server: RunningServer, shard: FakeShard
) -> None:
    client.call(open_request(), LONG_S)
    server.stop(0)
    with pytest.raises(UnavailableError):
        client.call(open_request("b"), LONG_S)
    with pytest.raises(UnavailableError, match="no longer usable"):
        client.receive(LONG_S)


def test_closing_frees_the_sessions_of_the_peer(client: ShardStreamClient, shard: FakeShard) -> None:
    client.call(open_request(), LONG_S)
    assert shard.sessions
    client.close()
    client.close()
    assert shard.stream_ended.wait(LONG_S)
    assert shard.sessions == {}
    with pytest.raises(UnavailableError, match="closed by this side"):
        client.send(open_request())


def test_a_client_that_is_dropped_frees_the_sessions_too(
    transport: Any, server: RunningServer, shard: FakeShard
) -> None:
    client = ShardStreamClient(server.targets[0])
    client.call(open_request(), LONG_S)
    del client
    gc.collect()
    assert shard.stream_ended.wait(LONG_S)


def test_closing_wakes_a_thread_that_waits(client: ShardStreamClient, shard: FakeShard) -> None:
    client.call(open_request(), LONG_S)
    shard.hold.clear()
    client.send(open_request("b"))
    raised: list[BaseException] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        try:
            client.receive(LONG_S)
        except UnavailableError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    client.close()
    thread.join(LONG_S)
    assert len(raised) == 1


def test_a_request_larger_than_a_message_is_refused_and_nothing_sent(
    transport: Any, server: RunningServer
) -> None:
    with ShardStreamClient(server.targets[0], max_message_bytes=1000) as client:
        with pytest.raises(FrameError, match="expected at most 1000"):
            client.send(step_request(np.zeros((1000, WIDTH), np.float32)))
        assert client.usable
        assert client.call(open_request(), LONG_S).id == 1


def test_receive_and_call_out_of_turn_are_refused(client: ShardStreamClient) -> None:
    with pytest.raises(StepOrderError, match="expected a send before it"):
        client.receive(LONG_S)
    client.send(open_request())
    with pytest.raises(StepOrderError, match="1 replies are due"):
        client.call(open_request("b"), LONG_S)
    assert client.receive(LONG_S).id == 1


def test_a_reply_with_another_id_is_refused(transport: Any, tmp_path: Path) -> None:
    class Confused(shard_pb2_grpc.ShardServicer):
        def Run(self, requests: Any, context: Any) -> Any:
            for request in requests:
                yield shard_pb2.ShardReply(id=request.id + 1, closed=shard_pb2.Closed())

    with serving(Confused(), tmp_path) as server, ShardStreamClient(server.targets[0]) as client:
        with pytest.raises(FrameError, match="got a reply to request 2, expected one to 1"):
            client.call(open_request(), LONG_S)
        assert not client.usable


def test_a_server_full_of_streams_refuses_with_a_capacity_error(transport: Any, tmp_path: Path) -> None:
    with serving(FakeShard(), tmp_path, max_calls=1) as server, ShardStreamClient(server.targets[0]) as first:
        first.call(open_request(), LONG_S)
        with ShardStreamClient(server.targets[0]) as second, pytest.raises(CapacityError):
            second.call(open_request(), LONG_S)


def test_a_bug_in_the_peer_shows_no_traceback(transport: Any, tmp_path: Path) -> None:
    class Broken(shard_pb2_grpc.ShardServicer):
        def Run(self, requests: Any, context: Any) -> Any:
            next(requests)
            raise ValueError("a secret")
            yield

    with serving(Broken(), tmp_path) as server, ShardStreamClient(server.targets[0]) as client:
        with pytest.raises(UnavailableError, match="unexpected error, number") as caught:
            client.call(open_request(), LONG_S)
        assert "secret" not in str(caught.value) and "Traceback" not in str(caught.value)
