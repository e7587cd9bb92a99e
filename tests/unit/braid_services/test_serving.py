from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from braid_rpc.channels import make_channel
from braid_rpc.errors import (
    BraidError,
    CacheFullError,
    CapacityError,
    ConflictError,
    FrameError,
    InvalidRequestError,
    StepOrderError,
)
from braid_rpc.status import error_from_rpc
from braid_rpc.v1 import shard_pb2, shard_pb2_grpc
from braid_services.serving import RunningServer, start_server

LONG_S = 20.0


class Failing(shard_pb2_grpc.ShardServicer):
    """Answers `Tokenize`; everything else goes wrong in a way of its own."""

    def __init__(self) -> None:
        self.stream_ended = threading.Event()

    def Describe(self, request: Any, context: Any) -> Any:
        raise CacheFullError("got 3 — expected 2", retry_after_s=1.5)

    def FetchTokenizer(self, request: Any, context: Any) -> Any:
        raise ValueError("/secret/path")

    def Tokenize(self, request: shard_pb2.TokenizeRequest, context: Any) -> shard_pb2.TokenizeReply:
        return shard_pb2.TokenizeReply(token_ids=[len(request.text)])

    def Detokenize(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.OUT_OF_RANGE, "said by the servicer itself")

    def Run(self, requests: Iterator[shard_pb2.ShardRequest], context: Any) -> Iterator[shard_pb2.ShardReply]:
        try:
            for request in requests:
                if request.id == 13:
                    raise StepOrderError("thirteen")
                if request.id == 14:
                    raise KeyError("/secret/path")
                yield shard_pb2.ShardReply(id=request.id)
        finally:
            self.stream_ended.set()


@pytest.fixture
def servicer() -> Failing:
    return Failing()


@pytest.fixture
def server(servicer: Failing, tmp_path: Path) -> Iterator[RunningServer]:
    with start_server([servicer], ["127.0.0.1:0", f"unix:{tmp_path / 's.sock'}"]) as running:
        yield running


@pytest.fixture
def stub(server: RunningServer) -> Iterator[shard_pb2_grpc.ShardStub]:
    with make_channel(server.targets[0]) as channel:
        yield shard_pb2_grpc.ShardStub(channel)


def error_of(call: Any) -> BraidError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_rpc(caught.value)


def test_targets_are_what_clients_connect_to(server: RunningServer) -> None:
    assert not server.targets[0].endswith(":0")
    for target in server.targets:
        with make_channel(target) as channel:
            reply = shard_pb2_grpc.ShardStub(channel).Tokenize(shard_pb2.TokenizeRequest(text="abc"))
            assert list(reply.token_ids) == [3]


def test_a_typed_error_arrives_typed(stub: Any) -> None:
    error = error_of(lambda: stub.Describe(shard_pb2.DescribeShardRequest()))
    assert (type(error), error.message, error.retry_after_s) == (CacheFullError, "got 3 — expected 2", 1.5)


def test_an_unexpected_error_shows_a_number_and_the_log_has_the_rest(
    stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        error = error_of(lambda: stub.FetchTokenizer(shard_pb2.FetchTokenizerRequest()))
    assert type(error) is BraidError
    assert "secret" not in error.message and "Traceback" not in error.message
    (record,) = [r for r in caplog.records if r.name == "braid_services.serving"]
    number = record.args[0] if isinstance(record.args, tuple) else ""
    assert str(number) in error.message
    assert record.exc_info is not None and "/secret/path" in str(record.exc_info[1])


def test_a_status_that_a_servicer_sets_itself_is_left_alone(stub: Any) -> None:
    error = error_of(lambda: stub.Detokenize(shard_pb2.DetokenizeRequest()))
    assert (type(error), error.message) == (InvalidRequestError, "said by the servicer itself")


@pytest.mark.parametrize(("bad", "kind"), [(13, StepOrderError), (14, BraidError)])
def test_an_error_that_ends_a_stream_comes_after_its_replies(
    stub: Any, bad: int, kind: type[BraidError]
) -> None:
    replies = stub.Run(iter([shard_pb2.ShardRequest(id=1), shard_pb2.ShardRequest(id=bad)]))
    assert next(replies).id == 1
    error = error_of(lambda: next(replies))
    assert type(error) is kind and "secret" not in error.message


def test_a_client_that_hangs_up_ends_its_stream_quietly(
    stub: Any, servicer: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    hold = threading.Event()

    def requests() -> Iterator[shard_pb2.ShardRequest]:
        yield shard_pb2.ShardRequest(id=1)
        hold.wait(LONG_S)

    with caplog.at_level(logging.WARNING):
        replies = stub.Run(requests())
        next(replies)
        replies.cancel()
        assert servicer.stream_ended.wait(LONG_S)
        hold.set()
    assert caplog.records == []


def test_health_says_whether_the_services_serve(server: RunningServer) -> None:
    with make_channel(server.targets[0]) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def status(name: str) -> Any:
            return health.Check(health_pb2.HealthCheckRequest(service=name)).status

        for name in ("", "braid.v1.Shard"):
            assert status(name) == health_pb2.HealthCheckResponse.SERVING
        server.set_serving(False)
        for name in ("", "braid.v1.Shard"):
            assert status(name) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            status("nobody.Knows")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services(server: RunningServer) -> None:
    with make_channel(server.targets[0]) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (reply,) = list(stub.ServerReflectionInfo(iter([request])))
    names = {service.name for service in reply.list_services_response.service}
    assert {"braid.v1.Shard", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= names


def test_more_calls_than_threads_are_refused_rather_than_left_waiting(
    tmp_path: Path, servicer: Failing
) -> None:
    hold = threading.Event()

    def requests() -> Iterator[shard_pb2.ShardRequest]:
        yield shard_pb2.ShardRequest(id=1)
        hold.wait(LONG_S)

    with (
        start_server([servicer], [f"unix:{tmp_path / 'one.sock'}"], max_calls=1) as server,
        make_channel(server.targets[0]) as channel,
    ):
        stub = shard_pb2_grpc.ShardStub(channel)
        replies = stub.Run(requests())
        next(replies)
        error = error_of(lambda: stub.Tokenize(shard_pb2.TokenizeRequest(), timeout=LONG_S))
        assert isinstance(error, CapacityError)
        replies.cancel()
        hold.set()


def test_a_message_beyond_the_limit_is_refused(tmp_path: Path, servicer: Failing) -> None:
    with (
        start_server([servicer], [f"unix:{tmp_path / 'one.sock'}"], max_message_bytes=1000) as server,
        make_channel(server.targets[0]) as channel,
    ):
        stub = shard_pb2_grpc.ShardStub(channel)
        error = error_of(lambda: stub.Tokenize(shard_pb2.TokenizeRequest(text="x" * 2000)))
        assert isinstance(error, FrameError) and "expected at most 1000, the server's max_" in error.message


def test_an_address_that_is_taken_is_refused_and_its_owner_keeps_it(
    server: RunningServer, servicer: Failing, capfd: pytest.CaptureFixture[str]
) -> None:
    for target in server.targets:
        with pytest.raises(ConflictError, match="cannot listen on"):
            start_server([servicer], [target])
        with make_channel(target) as channel:
            shard_pb2_grpc.ShardStub(channel).Tokenize(shard_pb2.TokenizeRequest(text="abc"))


def test_a_socket_file_that_a_dead_server_left_is_replaced(tmp_path: Path, servicer: Failing) -> None:
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with start_server([servicer], [f"unix:{path}"]) as server, make_channel(server.targets[0]) as channel:
        shard_pb2_grpc.ShardStub(channel).Tokenize(shard_pb2.TokenizeRequest(text="abc"))
    assert not path.exists()


def test_a_server_that_took_over_a_socket_keeps_it_when_the_old_one_has_stopped(
    tmp_path: Path, servicer: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.sock"
    old = start_server([servicer], [f"unix:{path}"])
    with socket.socket(socket.AF_UNIX) as new:
        shut_down = old._pool.shutdown

        def take_over(**values: Any) -> None:
            new.bind(str(path))
            shut_down(**values)

        monkeypatch.setattr(old._pool, "shutdown", take_over)
        old.stop()
        assert path.is_socket()


def test_a_busy_socket_is_not_taken_for_a_dead_servers(tmp_path: Path, servicer: Failing) -> None:
    path = tmp_path / "one.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))  # the queue is full now: further ones have to wait
        with pytest.raises(ConflictError, match="cannot tell"):
            start_server([servicer], [f"unix:{path}"])
        assert path.is_socket()


def test_a_file_that_is_no_socket_is_never_removed(
    tmp_path: Path, servicer: Failing, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "precious"
    path.write_text("text")
    with pytest.raises(ConflictError):
        start_server([servicer], [f"unix:{path}"])
    assert path.read_text() == "text"


def test_stopping_ends_streams_and_may_be_repeated(servicer: Failing, tmp_path: Path) -> None:
    hold = threading.Event()

    def requests() -> Iterator[shard_pb2.ShardRequest]:
        yield shard_pb2.ShardRequest(id=1)
        hold.wait(LONG_S)

    server = start_server([servicer], [f"unix:{tmp_path / 's.sock'}"])
    with make_channel(server.targets[0]) as channel:
        replies = shard_pb2_grpc.ShardStub(channel).Run(requests())
        next(replies)
        server.stop(0.05)
        server.stop()
        assert servicer.stream_ended.is_set()
        assert server.wait(0)
        with pytest.raises(grpc.RpcError):
            next(replies)
        hold.set()


def test_what_serves_nothing_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="got object, expected one of"):
        start_server([object()], [f"unix:{tmp_path / 's.sock'}"])
    with pytest.raises(InvalidRequestError, match="targets: got none"):
        start_server([Failing()], [])
    with pytest.raises(InvalidRequestError, match="target: got 'nowhere'"):
        start_server([Failing()], ["nowhere"])
