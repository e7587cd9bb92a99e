from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from braid_rpc.errors import (
    CacheFullError,
    DeadlineError,
    FrameError,
    InvalidRequestError,
    ProtocolVersionError,
    ShapeMismatchError,
    StepOrderError,
    UnavailableError,
    UnknownSessionError,
)
from braid_rpc.shard_client import ShardClient
from braid_rpc.steps import OpenSession, Segment, SpanStep
from braid_rpc.v1 import shard_pb2
from braid_services.serving import RunningServer

from .fakes import NUM_LAYERS, VOCAB, WIDTH, FakeShard, serving

LONG_S = 20.0


@pytest.fixture
def shard() -> FakeShard:
    return FakeShard()


@pytest.fixture
def server(shard: FakeShard, tmp_path: Path) -> Iterator[RunningServer]:
    with serving(shard, tmp_path) as running:
        yield running
        shard.hold.set()


@pytest.fixture
def client(server: RunningServer) -> Iterator[ShardClient]:
    with ShardClient(server.targets[0], timeout_s=LONG_S) as made:
        yield made


def expected_logits(ids: list[int], rows: list[int], added: float = 0.0) -> np.ndarray:
    last = np.array(ids, np.float32)[rows] + NUM_LAYERS + added
    return last[:, None] + np.arange(VOCAB, dtype=np.float32)


def test_a_shard_describes_itself(client: ShardClient) -> None:
    card = client.describe()
    assert (card.name, card.num_layers, card.width, card.vocab_size) == ("fake", NUM_LAYERS, WIDTH, VOCAB)
    assert card.eos_token_ids == (0,)
    assert client.card == card


def test_another_protocol_version_is_refused_with_both_named(tmp_path: Path) -> None:
    with (
        serving(FakeShard(protocol_version=7), tmp_path) as server,
        ShardClient(server.targets[0]) as client,
    ):
        for call in (client.describe, client.open, client.stream):
            with pytest.raises(ProtocolVersionError, match="version 7, this client version 1"):
                call()


def test_text_becomes_tokens_with_offsets_and_back(client: ShardClient) -> None:
    tokens = client.tokenize("abc")
    assert tokens.token_ids == tuple(ord(c) % VOCAB for c in "abc")
    assert (tokens.starts, tokens.ends) == ((0, 1, 2), (1, 2, 3))
    assert client.detokenize([0, 1]) == "AB"
    assert client.tokenizer_json() == "{}"


def test_reading_states_on_the_way_changes_nothing(client: ShardClient) -> None:
    ids = [3, 1, 4]
    for cuts in ([], [2], [0, 2, 5], [1, 1]):
        with client.open(8) as session, session.step(ids, logits="all") as step:
            for layer in cuts:
                hidden_TD = step.run_to(layer)
                assert np.array_equal(hidden_TD[:, 0], np.array(ids) + layer)
            assert np.array_equal(step.finish(), expected_logits(ids, [0, 1, 2]))


def test_states_put_in_go_on_through_the_later_layers(client: ShardClient) -> None:
    with client.open() as session, session.step([3, 1]) as step:
        hidden_TD = step.run_to(4)
        logits_RV = step.finish(hidden_TD + np.float32(10))
    assert np.array_equal(logits_RV, expected_logits([3, 1], [1], added=10.0))


def test_the_rows_asked_for_are_the_rows_that_come(client: ShardClient) -> None:
    with client.open() as session:
        assert np.array_equal(session.feed([3, 1, 4]), expected_logits([3, 1, 4], [2]))
        assert np.array_equal(session.feed([3, 1, 4], logits=[0, 2]), expected_logits([3, 1, 4], [0, 2]))
        assert session.feed([3], logits=[]).shape == (0, VOCAB)
        for wrong in ([3], [-1], "some"):
            with pytest.raises(InvalidRequestError, match="logits: got"):
                session.feed([3, 1, 4], logits=wrong)  # type: ignore[arg-type]


def test_a_session_knows_its_length(client: ShardClient, shard: FakeShard) -> None:
    with client.open(session_id="mine") as session:
        session.feed([1, 2, 3])
        session.feed([4])
        assert (session.length, shard.sessions) == (4, {"mine": 4})
        session.crop(2)
        assert (session.length, shard.sessions) == (2, {"mine": 2})
        session.feed([5])
        assert shard.sessions == {"mine": 3}
        with pytest.raises(InvalidRequestError, match="got length 9, expected between 0 and 3"):
            session.crop(9)


def test_a_step_that_is_left_leaves_no_trace(client: ShardClient, shard: FakeShard) -> None:
    with client.open(session_id="mine") as session:
        session.feed([1])
        with session.step([2, 3]) as step:
            step.run_to(3)
        assert (session.length, shard.sessions) == (1, {"mine": 1})
        with pytest.raises(StepOrderError, match="after the step was finished or left"):
            step.finish()
        assert np.array_equal(session.feed([7]), expected_logits([7], [0]))


def test_a_step_may_be_kept_without_its_later_layers(client: ShardClient, shard: FakeShard) -> None:
    with client.open(session_id="mine") as session, session.step([2, 3]) as step:
        step.run_to(3, final=True)
        assert (session.length, shard.sessions) == (2, {"mine": 2})
        with pytest.raises(StepOrderError):
            step.finish()


def test_steps_out_of_order_are_refused(client: ShardClient) -> None:
    with client.open() as session:
        with pytest.raises(ShapeMismatchError, match="token_ids"):
            session.step([])
        with pytest.raises(ShapeMismatchError, match="token_ids"):
            session.step(np.zeros((2, 2)))
        step = session.step([1, 2])
        with pytest.raises(StepOrderError, match="states before the first span"):
            step.run_to(2, np.zeros((2, WIDTH), np.float32))
        step.run_to(3)
        with pytest.raises(StepOrderError, match=r"got layer 2, expected in \[3, 6\)"):
            step.run_to(2)
        with pytest.raises(StepOrderError, match="got layer 6"):
            step.run_to(NUM_LAYERS)
        with pytest.raises(ShapeMismatchError, match=r"hidden: got shape \(3, 4\), expected \(2, 4\)"):
            step.run_to(4, np.zeros((3, WIDTH), np.float32))
        step.finish()


def test_no_room_is_an_error_and_nothing_stays_open(client: ShardClient, shard: FakeShard) -> None:
    with pytest.raises(CacheFullError) as caught:
        client.open(num_tokens=1000)
    assert caught.value.retry_after_s == 2.0
    assert shard.stream_ended.wait(LONG_S)
    assert shard.sessions == {}


def test_closing_a_session_frees_it(client: ShardClient, shard: FakeShard) -> None:
    session = client.open()
    session.feed([1])
    session.close()
    session.close()
    assert shard.stream_ended.wait(LONG_S)
    assert shard.sessions == {}


def test_several_sessions_in_one_packed_batch(client: ShardClient, shard: FakeShard) -> None:
    with client.stream() as stream:
        stream.open([OpenSession("a", 4), OpenSession("b", 4)])
        first = SpanStep(
            step_id=stream.next_step_id(),
            start_layer=0,
            end_layer=2,
            final=False,
            segments=(Segment("a", 0, 2), Segment("b", 0, 1)),
            token_ids=np.array([1, 2, 3], np.int64),
            logit_rows=(1, 2),
        )
        half = stream.step(first)
        assert half.logits is None and half.hidden.shape == (3, WIDTH)
        assert half.timings.compute_s == pytest.approx(1.5e-3)
        rest = SpanStep(first.step_id, 2, NUM_LAYERS, True, hidden=half.hidden)
        whole = stream.step(rest)
        assert np.array_equal(whole.logits, expected_logits([1, 2, 3], [1, 2]))
        assert whole.hidden.shape == (2, WIDTH)
        assert shard.sessions == {"a": 2, "b": 1}
        stream.crop("a", 1)
        stream.close(["b", "never opened"])
        assert shard.sessions == {"a": 1}
        with pytest.raises(UnknownSessionError):
            stream.crop("b", 0)


def test_a_frame_of_another_width_is_refused(tmp_path: Path) -> None:
    class Wide(FakeShard):
        def Describe(self, request: Any, context: Any) -> shard_pb2.ShardCard:
            card = super().Describe(request, context)
            card.width = WIDTH + 1
            return card

    with (
        serving(Wide(), tmp_path) as server,
        ShardClient(server.targets[0]) as client,
        client.open() as session,
        pytest.raises(ShapeMismatchError, match=r"hidden: got shape \(1, 4\), expected \(any, 5\)"),
    ):
        session.step([1]).run_to(2)


def test_a_reply_of_another_kind_is_refused(tmp_path: Path) -> None:
    class Closing(FakeShard):
        def _answer(self, request: Any, batch: Any) -> shard_pb2.ShardReply:
            return shard_pb2.ShardReply(closed=shard_pb2.Closed())

    with (
        serving(Closing(), tmp_path) as server,
        ShardClient(server.targets[0]) as client,
        client.open() as session,
        pytest.raises(FrameError, match="got closed, expected a frame"),
    ):
        session.feed([1])


def test_a_message_that_is_too_large_is_told_with_the_setting_and_its_side(server: RunningServer) -> None:
    with ShardClient(server.targets[0], timeout_s=LONG_S, max_message_bytes=1000) as client:
        with pytest.raises(
            FrameError, match=r"got a request of \d+ bytes, expected at most 1000, the client's max_"
        ):
            client.tokenize("x" * 2000)
        with pytest.raises(
            FrameError, match=r"got a reply of \d+ bytes, expected at most 1000, the client's max_"
        ):
            client.tokenize("x" * 500)
        with (
            client.open() as session,
            pytest.raises(
                FrameError, match=r"got a reply of \d+ bytes, expected at most 1000, the client's max_"
            ),
        ):
            session.step([1] * 100).run_to(1)


def test_a_shard_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    target = f"unix:{tmp_path / 'nobody.sock'}"
    with ShardClient(target, retries=1) as client, pytest.raises(UnavailableError, match="nobody"):
        client.describe()


def test_a_shard_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    class Late(FakeShard):
        attempts = 0

        def Describe(self, request: Any, context: Any) -> shard_pb2.ShardCard:
            self.attempts += 1
            if self.attempts < 3:
                raise UnavailableError("still loading")
            return super().Describe(request, context)

    with serving(Late(), tmp_path) as server:
        with ShardClient(server.targets[0], retries=2) as client:
            assert client.describe().name == "fake"
        Late.attempts = 0
    with (
        serving(Late(), tmp_path) as server,
        ShardClient(server.targets[0], retries=1) as client,
        pytest.raises(UnavailableError, match="still loading"),
    ):
        client.describe()


def test_a_slow_shard_is_a_deadline(server: RunningServer, shard: FakeShard) -> None:
    with ShardClient(server.targets[0], timeout_s=0.3) as client:
        session = client.open()
        shard.hold.clear()
        with pytest.raises(DeadlineError, match=r"no answer within 0\.3 s"):
            session.feed([1])
        with pytest.raises(UnavailableError):
            session.feed([1])
