"""A shard behind gRPC: what the contract suite for streams does not cover."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from families import make_model

from braid_rpc.cards import PROTOCOL_VERSION, ShardCard
from braid_rpc.channels import make_channel
from braid_rpc.errors import BraidError, FrameError, InvalidRequestError, StepOrderError
from braid_rpc.shard_client import ShardClient
from braid_rpc.stream_client import ShardStreamClient
from braid_rpc.v1 import shard_pb2, shard_pb2_grpc, tensor_pb2
from braid_services.serving import RunningServer
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.main import serve_backend, serve_shard
from braid_services.tensors import decode_torch, encode_torch

from .conftest import make_backend
from .test_backend import make_tokenizer, wait_until


@pytest.fixture(scope="module")
def served() -> ShardBackend:
    return make_backend(make_model("llama"), make_tokenizer(), max_message_bytes=2**20)


@pytest.fixture(scope="module")
def server(served: ShardBackend) -> Iterator[RunningServer]:
    with serve_backend(served, ["localhost:0"]) as server:
        yield server


@pytest.fixture
def stub(server: RunningServer) -> Iterator[Any]:
    with make_channel(server.targets[0]) as channel:
        yield shard_pb2_grpc.ShardStub(channel)


@pytest.fixture
def client(server: RunningServer) -> Iterator[ShardStreamClient]:
    with ShardStreamClient(server.targets[0]) as client:
        yield client


def open_request(name: str, num_tokens: int = 8) -> shard_pb2.ShardRequest:
    sessions = [shard_pb2.OpenSession(session_id=name, num_tokens=num_tokens)]
    return shard_pb2.ShardRequest(open=shard_pb2.OpenSessions(sessions=sessions))


def step_request(**values: Any) -> shard_pb2.ShardRequest:
    return shard_pb2.ShardRequest(step=shard_pb2.Step(**values))


def test_describe_gives_the_card(stub: Any, served: ShardBackend) -> None:
    card = ShardCard.from_proto(stub.Describe(shard_pb2.DescribeShardRequest()))
    assert card == served.card
    assert card.protocol_version == PROTOCOL_VERSION


def test_the_tokenizer_travels_whole(stub: Any, served: ShardBackend) -> None:
    file = stub.FetchTokenizer(shard_pb2.FetchTokenizerRequest())
    assert file.tokenizer_json == served.tokenizer_json()
    assert file.hash == served.card.tokenizer_hash
    assert file.chat_template == "{{ messages }}"
    assert dict(file.special_tokens) == served.chat_format.special_tokens
    assert tuple(file.eos_token_ids) == (1,)


def test_tokenize_and_detokenize(stub: Any) -> None:
    reply = stub.Tokenize(shard_pb2.TokenizeRequest(text="once a naïve"))
    assert list(reply.token_ids) == [1, 3, 5]
    assert list(zip(reply.starts, reply.ends, strict=True)) == [(0, 4), (5, 6), (7, 12)]
    assert stub.Detokenize(shard_pb2.DetokenizeRequest(token_ids=[1, 5])).text == "once naïve"
    with pytest.raises(grpc.RpcError) as caught:
        stub.Detokenize(shard_pb2.DetokenizeRequest(token_ids=[999]))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "999" in caught.value.details()


def test_a_client_that_leaves_frees_its_caches(server: RunningServer, served: ShardBackend) -> None:
    client = ShardStreamClient(server.targets[0])
    client.call(open_request("a", 32))
    tokens = encode_torch(torch.arange(4))
    segments = [tensor_pb2.Segment(session_id="a", position=0, num_rows=4)]
    client.call(step_request(step_id=1, end_layer=1, segments=segments, token_ids=tokens))
    assert served.card.num_sessions == 1
    client.close()
    wait_until(lambda: served.card.num_sessions == 0)
    assert served.card.cache_bytes_free == served.card.cache_bytes_total


def test_replies_say_where_the_time_went(client: ShardStreamClient) -> None:
    client.call(open_request("a"))
    tokens = encode_torch(torch.arange(4, dtype=torch.int32))
    segments = [tensor_pb2.Segment(session_id="a", position=0, num_rows=4)]
    reply = client.call(
        step_request(step_id=1, end_layer=3, final=True, segments=segments, token_ids=tokens, logit_rows=[3])
    )
    assert reply.timings.compute_us > 0
    assert decode_torch(reply.frame.logits).shape == (1, 67)
    assert decode_torch(reply.frame.hidden).shape == (1, 32)


def test_broken_frames_are_refused_and_the_stream_goes_on(client: ShardStreamClient) -> None:
    client.call(open_request("a"))
    segments = [tensor_pb2.Segment(session_id="a", position=0, num_rows=4)]
    good = encode_torch(torch.arange(4))
    short, huge, floats = (tensor_pb2.Tensor.FromString(good.SerializeToString()) for _ in range(3))
    short.data = short.data[:-1]
    huge.shape[0] = 2**31
    floats.dtype = tensor_pb2.DTYPE_FLOAT64
    for broken in (short, huge, floats, tensor_pb2.Tensor()):
        with pytest.raises(FrameError):
            client.call(step_request(step_id=1, end_layer=1, segments=segments, token_ids=broken))
    with pytest.raises(InvalidRequestError, match="no operation"):
        client.call(shard_pb2.ShardRequest())
    client.call(step_request(step_id=1, end_layer=1, segments=segments, token_ids=good))
    half = encode_torch(torch.zeros(4, 32, dtype=torch.bfloat16))
    with pytest.raises(FrameError, match="float32"):
        client.call(step_request(step_id=1, start_layer=1, end_layer=3, final=True, hidden=half))
    hidden = encode_torch(torch.zeros(4, 32))
    client.call(step_request(step_id=1, start_layer=1, end_layer=3, final=True, hidden=hidden))


def test_an_unexpected_error_reaches_the_log_and_not_the_caller(
    client: ShardStreamClient,
    served: ShardBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(served.pool, "open", fail)
    with caplog.at_level(logging.ERROR), pytest.raises(BraidError, match="number") as caught:
        client.call(open_request("a"))
    assert "secret" not in caught.value.message
    assert "secret detail" in caplog.text
    monkeypatch.undo()
    client.call(open_request("a"))


def test_a_reply_beyond_the_limit_is_refused_and_the_stream_goes_on(tmp_path: Path) -> None:
    # 16 rows of states are 2 KiB and fit; with the logits of 16 rows it is more than 6 KiB.
    backend = make_backend(make_model("llama"), max_message_bytes=8 * 2**10)
    with (
        serve_backend(backend, [f"unix:{tmp_path}/s"]) as server,
        ShardClient(server.targets[0], max_message_bytes=2**20) as client,
        client.open(64) as session,
    ):
        with session.step(range(16), logits="all") as step:
            step.run_to(1)
            for _ in range(2):
                with pytest.raises(FrameError, match=r"16 rows to layer 3 would give 6336 bytes.*most 4096"):
                    step.finish()
        with session.step(range(40)) as step, pytest.raises(FrameError, match="40 rows to layer 1"):
            step.run_to(1)
        assert session.feed(range(16), logits=range(6, 16)).shape == (10, 67)


def test_a_session_may_be_opened_to_end_at_a_layer(server: RunningServer, served: ShardBackend) -> None:
    with ShardClient(server.targets[0]) as client, client.open(8, end_layer=2) as session:
        for length in (3, 4):
            with session.step([1] * (length - session.length)) as step:
                assert step.run_to(2, final=True).shape[1] == 32
            assert session.length == length
        with session.step([1]) as step, pytest.raises(StepOrderError, match="to layer 2 only"):
            step.finish()
    wait_until(lambda: served.card.num_sessions == 0)


def test_bfloat16_states_travel_unchanged(tmp_path: Path) -> None:
    make_model("qwen2").to(torch.bfloat16).save_pretrained(tmp_path)
    config = ShardConfig("half", str(tmp_path), dtype="bfloat16")
    with (
        serve_shard(config, [f"unix:{tmp_path}/s"]) as server,
        ShardStreamClient(server.targets[0]) as client,
    ):
        client.call(open_request("a"))
        segments = [tensor_pb2.Segment(session_id="a", position=0, num_rows=3)]
        tokens = encode_torch(torch.arange(3))
        frame = client.call(
            step_request(step_id=1, end_layer=0, segments=segments, token_ids=tokens, logit_rows=[2])
        ).frame
        backend = ShardBackend.load(config)
        hidden = decode_torch(frame.hidden)
        assert hidden.dtype is torch.bfloat16
        assert torch.equal(hidden, backend.model.get_input_embeddings().weight[:3])
        last = step_request(step_id=1, start_layer=0, end_layer=3, final=True, hidden=frame.hidden)
        assert decode_torch(client.call(last).frame.logits).dtype is torch.bfloat16
