"""What a caller of a shard may rely on, whether the shard is in process or behind gRPC: one suite for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from braid_rpc.errors import (
    BraidError,
    CacheFullError,
    ContextLengthError,
    FrameError,
    InvalidRequestError,
    ShapeMismatchError,
    StepOrderError,
    UnknownSessionError,
)
from braid_rpc.steps import OpenSession, Segment, SpanResult, SpanStep
from braid_rpc.stream_client import ShardStreamClient
from braid_rpc.v1 import shard_pb2
from braid_services.serving import RunningServer
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.main import serve_backend
from braid_services.tensors import decode_torch, encode_torch

LAYERS, WIDTH, VOCAB, CONTEXT, BLOCK = 4, 16, 50, 48, 4
BLOCK_BYTES_PER_LAYER = BLOCK * 2 * WIDTH * 4
CACHE_BYTES = 40 * LAYERS * BLOCK_BYTES_PER_LAYER
TOLERANCE = 1e-5  # float32: sums taken in another order


class Stream(Protocol):
    def open(self, sessions: Sequence[OpenSession]) -> int: ...
    def step(self, step: SpanStep[Tensor]) -> SpanResult[Tensor]: ...
    def crop(self, session_id: str, length: int) -> int: ...
    def close(self, session_ids: Sequence[str]) -> int: ...
    def end(self) -> None: ...


class WireStream:
    """A shard's stream behind gRPC, with the methods of the one in process."""

    def __init__(self, target: str) -> None:
        self.client = ShardStreamClient(target)

    def open(self, sessions: Sequence[OpenSession]) -> int:
        messages = [
            shard_pb2.OpenSession(session_id=s.session_id, num_tokens=s.num_tokens, end_layer=s.end_layer)
            for s in sessions
        ]
        reply = self.client.call(shard_pb2.ShardRequest(open=shard_pb2.OpenSessions(sessions=messages)))
        return reply.opened.cache_bytes_free

    def step(self, step: SpanStep[Tensor]) -> SpanResult[Tensor]:
        message = shard_pb2.Step(
            step_id=step.step_id,
            start_layer=step.start_layer,
            end_layer=step.end_layer,
            final=step.final,
            logit_rows=step.logit_rows,
        )
        for s in step.segments:
            message.segments.add(session_id=s.session_id, position=s.position, num_rows=s.num_rows)
        if step.token_ids is not None:
            message.token_ids.CopyFrom(encode_torch(step.token_ids))
        if step.hidden is not None:
            message.hidden.CopyFrom(encode_torch(step.hidden))
        frame = self.client.call(shard_pb2.ShardRequest(step=message)).frame
        logits = decode_torch(frame.logits) if frame.HasField("logits") else None
        return SpanResult(decode_torch(frame.hidden), logits, cache_bytes_free=frame.cache_bytes_free)

    def crop(self, session_id: str, length: int) -> int:
        crop = shard_pb2.Crop(session_id=session_id, length=length)
        return self.client.call(shard_pb2.ShardRequest(crop=crop)).cropped.cache_bytes_free

    def close(self, session_ids: Sequence[str]) -> int:
        close = shard_pb2.CloseSessions(session_ids=session_ids)
        return self.client.call(shard_pb2.ShardRequest(close=close)).closed.cache_bytes_free

    def end(self) -> None:
        self.client.close()


@pytest.fixture(scope="module")
def backend() -> ShardBackend:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
    )
    settings = ShardConfig("tiny", "in-memory", cache_bytes=CACHE_BYTES, block_tokens=BLOCK)
    return ShardBackend.from_model(LlamaForCausalLM(config), None, settings)


@pytest.fixture(scope="module")
def server(backend: ShardBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("shard")
    with serve_backend(backend, [f"unix:{folder}/s", "localhost:0"]) as server:
        yield server


MakeStream = Callable[[], Stream]


@pytest.fixture(params=["in process", "unix socket", "tcp"])
def make_stream(request: pytest.FixtureRequest, backend: ShardBackend) -> MakeStream:
    if request.param == "in process":
        return backend.stream
    target = request.getfixturevalue("server").targets[0 if request.param == "unix socket" else 1]
    return lambda: WireStream(target)


@pytest.fixture
def stream(make_stream: MakeStream, backend: ShardBackend) -> Iterator[Stream]:
    stream = make_stream()
    yield stream
    stream.close([f"s{i}" for i in range(10)])
    assert backend.card.cache_bytes_free == CACHE_BYTES
    stream.end()


def ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def plain(backend: ShardBackend, token_ids: Tensor) -> Tensor:
    with torch.inference_mode(), backend.plain_model() as model:
        return model(input_ids=token_ids[None]).logits[0]


def first(
    step_id: int, token_ids: Tensor, position: int = 0, end: int = LAYERS, **values: Any
) -> SpanStep[Tensor]:
    """A batch of session s0's rows, with the logits of the last of them."""
    given = {
        "final": end == LAYERS,
        "segments": (Segment("s0", position, len(token_ids)),),
        "token_ids": token_ids,
        "logit_rows": (len(token_ids) - 1,),
        **values,
    }
    return SpanStep(step_id, 0, end, **given)


def later(step_id: int, start: int, hidden: Tensor, end: int = LAYERS, **values: Any) -> SpanStep[Tensor]:
    return SpanStep(step_id, start, end, **{"final": end == LAYERS, "hidden": hidden, **values})


def close_to(got: Tensor | None, expected: Tensor) -> bool:
    return got is not None and torch.allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_spans_prefill_and_decode_equal_the_plain_model(stream: Stream, backend: ShardBackend) -> None:
    text = ids(12)
    expected = plain(backend, text)
    stream.open([OpenSession("s0", 12)])
    hidden = stream.step(first(1, text[:9], end=1)).hidden
    hidden = stream.step(later(1, 1, hidden, end=3)).hidden
    assert close_to(stream.step(later(1, 3, hidden)).logits, expected[[8]])
    for step_id, position in ((2, 9), (3, 10), (4, 11)):
        hidden = stream.step(first(step_id, text[position : position + 1], position, end=2)).hidden
        assert close_to(stream.step(later(step_id, 2, hidden)).logits, expected[[position]])


def test_states_given_back_changed_change_what_follows(stream: Stream) -> None:
    stream.open([OpenSession("s0", 0)])
    hidden = stream.step(first(1, ids(3), end=2)).hidden
    same = stream.step(later(1, 2, hidden)).logits
    stream.crop("s0", 0)
    hidden = stream.step(first(2, ids(3), end=2)).hidden
    changed = stream.step(later(2, 2, hidden.flip(1))).logits
    assert same is not None
    assert not close_to(changed, same)


def test_empty_spans_hand_the_states_through(stream: Stream, backend: ShardBackend) -> None:
    text = ids(5)
    stream.open([OpenSession("s0", 0)])
    hidden = stream.step(first(1, text, end=0)).hidden
    assert torch.equal(hidden, backend.model.get_input_embeddings()(text).detach())
    assert torch.equal(stream.step(later(1, 0, hidden * 2, end=0)).hidden, hidden * 2)
    hidden = stream.step(later(1, 0, hidden, end=2)).hidden
    for factor in (3.0, 0.5, 1.0):
        assert torch.equal(stream.step(later(1, 2, hidden * factor, end=2)).hidden, hidden * factor)
    assert close_to(stream.step(later(1, 2, hidden)).logits, plain(backend, text)[[4]])


def test_a_repeated_step_gives_its_result_again_and_runs_once(stream: Stream, backend: ShardBackend) -> None:
    text = ids(6)
    stream.open([OpenSession("s0", 0)])
    once, again = stream.step(first(1, text, end=2)), stream.step(first(1, text, end=2))
    assert torch.equal(once.hidden, again.hidden)
    once, again = (stream.step(later(1, 2, once.hidden)) for _ in range(2))
    assert torch.equal(once.logits, again.logits)
    assert close_to(stream.step(first(2, ids(1), 6)).logits, plain(backend, torch.cat([text, ids(1)]))[[6]])


def test_an_abandoned_batch_leaves_no_trace(stream: Stream, backend: ShardBackend) -> None:
    stream.open([OpenSession("s0", 2)])
    free = backend.card.cache_bytes_free
    stream.step(first(1, ids(17, seed=3), end=2))
    assert backend.card.cache_bytes_free < free
    result = stream.step(first(2, ids(3)))
    assert close_to(result.logits, plain(backend, ids(3))[[2]])
    assert result.cache_bytes_free == free


def test_a_run_to_the_end_that_is_not_final_only_looks(stream: Stream, backend: ShardBackend) -> None:
    stream.open([OpenSession("s0", 2)])
    free = backend.card.cache_bytes_free
    for step_id, text in ((1, ids(7)), (2, ids(9, seed=4))):
        expected = plain(backend, text)[[len(text) - 1]]
        assert close_to(stream.step(first(step_id, text, final=False)).logits, expected)
        assert backend.card.cache_bytes_free == free


def test_a_session_that_stops_early_holds_no_cache_for_the_layers_above(
    stream: Stream, backend: ShardBackend
) -> None:
    free = stream.open([OpenSession("s0", BLOCK, end_layer=3)])
    assert free == CACHE_BYTES - 3 * BLOCK_BYTES_PER_LAYER
    hidden = stream.step(first(1, ids(4), end=1)).hidden
    whole = stream.step(later(1, 1, hidden, end=3, final=True)).hidden
    stream.crop("s0", 3)
    last = stream.step(first(2, ids(4)[3:], 3, end=3, final=True)).hidden
    assert close_to(last, whole[[3]])
    with pytest.raises(StepOrderError, match="to layer 3 only"):
        stream.step(first(3, ids(1), 4))


# What is wrong, the step, the error and what its message must name. The session s0 has 6 tokens; step 7 is
# suspended at layer 2 with 3 more rows.
WRONG_STEPS: dict[str, tuple[SpanStep[Tensor], type[BraidError], str]] = {
    "start": (later(7, 1, torch.zeros(3, WIDTH)), StepOrderError, "expected step 7 from layer 2"),
    "step id": (later(8, 2, torch.zeros(3, WIDTH)), StepOrderError, "expected step 7 from layer 2"),
    "end before start": (later(7, 2, torch.zeros(3, WIDTH), end=1), StepOrderError, "layers 2 to 1"),
    "end beyond": (later(7, 2, torch.zeros(3, WIDTH), end=5), StepOrderError, r"expected an end in \[2, 4\]"),
    "final too early": (later(7, 2, torch.zeros(3, WIDTH), end=3, final=True), StepOrderError, "final span"),
    "no states": (SpanStep(7, 2, 4, True), StepOrderError, "needs hidden states"),
    "segments later": (
        later(7, 2, torch.zeros(3, WIDTH), segments=(Segment("s0", 6, 3),)),
        StepOrderError,
        "first span",
    ),
    "rows": (later(7, 2, torch.zeros(4, WIDTH)), ShapeMismatchError, rf"\(4, {WIDTH}\).*\(3, {WIDTH}\)"),
    "width": (later(7, 2, torch.zeros(3, WIDTH + 1)), ShapeMismatchError, str(WIDTH)),
    "rank": (later(7, 2, torch.zeros(3)), ShapeMismatchError, "3"),
    "dtype": (later(7, 2, torch.zeros(3, WIDTH, dtype=torch.float16)), FrameError, "float32"),
    "old step id": (first(7, ids(2), 6), StepOrderError, "expected an id above the last, 7"),
    "tokens not at layer 0": (replace(first(8, ids(2), 6), start_layer=2), StepOrderError, "at layer 0"),
    "tokens and states": (
        replace(first(8, ids(3), 6), hidden=torch.zeros(3, WIDTH)),
        StepOrderError,
        "without hidden",
    ),
    "position": (first(8, ids(2), 5), StepOrderError, "from position 5, expected 6"),
    "session": (
        first(8, ids(2), segments=(Segment("nobody", 0, 2),)),
        UnknownSessionError,
        "nobody",
    ),
    "session twice": (
        first(8, ids(2), segments=(Segment("s0", 6, 1), Segment("s0", 6, 1))),
        InvalidRequestError,
        "once per batch",
    ),
    "no rows": (
        first(8, ids(2), segments=(Segment("s0", 6, 2), Segment("s1", 0, 0))),
        InvalidRequestError,
        "one row",
    ),
    "no segments": (first(8, ids(2), segments=()), InvalidRequestError, "at least one row"),
    "token count": (first(8, ids(2), segments=(Segment("s0", 6, 3),)), ShapeMismatchError, r"\(2,\).*\(3,\)"),
    "token dtype": (first(8, torch.zeros(2), 6), InvalidRequestError, "int64"),
    "token too large": (first(8, torch.tensor([0, VOCAB]), 6), InvalidRequestError, str(VOCAB)),
    "token negative": (first(8, torch.tensor([0, -1]), 6), InvalidRequestError, "-1"),
    "logit row": (first(8, ids(2), 6, logit_rows=(2,)), InvalidRequestError, "logit_rows"),
    "logit row twice": (first(8, ids(2), 6, logit_rows=(1, 1)), InvalidRequestError, "got 1 after 1"),
    "logit rows out of order": (first(8, ids(2), 6, logit_rows=(1, 0)), InvalidRequestError, "got 0 after 1"),
    "context": (first(8, ids(CONTEXT - 5), 6), ContextLengthError, f"{CONTEXT + 1} tokens.*{CONTEXT}"),
    "cache": (
        first(8, ids(40), segments=(Segment("s0", 6, 20), Segment("s1", 0, 20))),
        CacheFullError,
        "wanted",
    ),
}


@pytest.mark.parametrize("what", WRONG_STEPS)
def test_a_wrong_step_is_refused_by_name_and_changes_nothing(
    what: str, stream: Stream, backend: ShardBackend
) -> None:
    text = ids(9)
    step, error, names = WRONG_STEPS[what]
    stream.open([OpenSession("s0", 0), OpenSession("s1", 0)])
    stream.open([OpenSession(f"s{i}", BLOCK * 10) for i in (2, 3, 4)])
    stream.step(first(1, text[:6]))
    hidden = stream.step(first(7, text[6:], 6, end=2)).hidden
    card = backend.card
    with pytest.raises(error, match=names):
        stream.step(step)
    assert backend.card == card
    assert close_to(stream.step(later(7, 2, hidden)).logits, plain(backend, text)[[8]])


def test_a_step_without_a_batch_is_refused(stream: Stream) -> None:
    stream.open([OpenSession("s0", 0)])
    with pytest.raises(StepOrderError, match="no batch is under way"):
        stream.step(later(1, 2, torch.zeros(3, WIDTH)))


def test_opening_is_all_or_none(stream: Stream, backend: ShardBackend) -> None:
    blocks = CACHE_BYTES // (LAYERS * BLOCK_BYTES_PER_LAYER)
    too_many = [OpenSession(f"s{i}", CONTEXT) for i in range(blocks * BLOCK // CONTEXT + 1)]
    with pytest.raises(CacheFullError, match="wanted") as caught:
        stream.open(too_many)
    assert caught.value.retry_after_s > 0
    for sessions, error in (
        ([OpenSession("s0", 1), OpenSession("s1", CONTEXT + 1)], ContextLengthError),
        ([OpenSession("s0", 1), OpenSession("s0", 1)], InvalidRequestError),
        ([OpenSession("s0", 1), OpenSession("", 1)], InvalidRequestError),
        ([OpenSession("s0", 1), OpenSession("s1", 1, end_layer=LAYERS + 1)], InvalidRequestError),
    ):
        with pytest.raises(error):
            stream.open(sessions)
    assert backend.card.cache_bytes_free == CACHE_BYTES
    assert backend.card.num_sessions == 0
    with pytest.raises(UnknownSessionError):
        stream.crop("s0", 0)


def test_crop_frees_blocks_but_keeps_what_was_promised(stream: Stream, backend: ShardBackend) -> None:
    promised = stream.open([OpenSession("s0", BLOCK + 1)])
    stream.step(first(1, ids(15)))
    assert backend.card.cache_bytes_free == promised - 2 * LAYERS * BLOCK_BYTES_PER_LAYER
    assert stream.crop("s0", 9) == promised - LAYERS * BLOCK_BYTES_PER_LAYER
    assert stream.crop("s0", 0) == promised
    for length in (1, 100):
        with pytest.raises(InvalidRequestError, match="expected"):
            stream.crop("s0", length)


def test_closing_twice_or_unknown_sessions_is_harmless(stream: Stream) -> None:
    stream.open([OpenSession("s0", 8)])
    assert stream.close(["s0", "s0", "nobody"]) == CACHE_BYTES
    assert stream.close(["s0"]) == CACHE_BYTES


def test_closing_or_cropping_a_session_gives_up_its_suspended_batch(
    stream: Stream, backend: ShardBackend
) -> None:
    stream.open([OpenSession("s0", 0), OpenSession("s1", 0)])
    both = (Segment("s0", 0, 2), Segment("s1", 0, 2))
    hidden = stream.step(first(1, ids(4), end=2, segments=both)).hidden
    stream.close(["s1"])
    with pytest.raises(StepOrderError, match="no batch"):
        stream.step(later(1, 2, hidden))
    hidden = stream.step(first(2, ids(4), end=2)).hidden
    stream.crop("s0", 0)
    with pytest.raises(StepOrderError, match="no batch"):
        stream.step(later(2, 2, hidden))
    assert backend.card.cache_bytes_free == CACHE_BYTES


def test_streams_have_sessions_of_their_own(make_stream: MakeStream, backend: ShardBackend) -> None:
    one, other = make_stream(), make_stream()
    for stream, text in ((one, ids(5)), (other, ids(7, seed=2))):
        stream.open([OpenSession("s0", 0)])
        stream.step(first(1, text[:-1]))
    for stream, text in ((one, ids(5)), (other, ids(7, seed=2))):
        result = stream.step(first(2, text[-1:], len(text) - 1))
        assert close_to(result.logits, plain(backend, text)[[-1]])
    one.close(["s0"])
    with pytest.raises(UnknownSessionError):
        one.crop("s0", 0)
    assert other.crop("s0", 0) == other.close(["s0"])
    one.end()
    other.end()


def test_another_batch_under_an_old_step_id_is_no_repeat(stream: Stream) -> None:
    stream.open([OpenSession("s0", 0)])
    hidden = stream.step(first(1, ids(4), end=2)).hidden
    with pytest.raises(StepOrderError, match="above the last"):
        stream.step(first(1, ids(4, seed=9), end=2))
    stream.step(later(1, 2, hidden))
    with pytest.raises(StepOrderError, match="no batch"):
        stream.step(later(1, 2, hidden * 2))


def test_room_that_an_abandoned_batch_took_is_there_for_the_next(
    stream: Stream, backend: ShardBackend
) -> None:
    stream.open([OpenSession("s0", 0), OpenSession("s1", 0)])
    stream.open([OpenSession(f"s{i}", BLOCK * 10) for i in (2, 3, 4)])
    stream.step(first(1, ids(32), end=2))
    assert backend.card.cache_bytes_free == 2 * LAYERS * BLOCK_BYTES_PER_LAYER
    segments = (Segment("s1", 0, 36),)
    result = stream.step(first(2, ids(36), segments=segments))
    assert result.cache_bytes_free == LAYERS * BLOCK_BYTES_PER_LAYER
    assert close_to(result.logits, plain(backend, ids(36))[[35]])
