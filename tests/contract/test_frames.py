"""Braids whose states travel in narrower formats: exact where nothing is fused, near where something is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from braids import TRANSPORTS, braid_config, running, shaken_weights, two_backends
from models import byte_tokenizer, tiny_llama

from braid_orchestrator.config.values import BraidConfig, LimitsConfig, PointConfig, ReadoutConfig
from braid_orchestrator.engine.frame_link import FrameLink
from braid_rpc.errors import ConfigError, FrameError, StepOrderError
from braid_rpc.frames import FRAME_FORMATS
from braid_rpc.steps import OpenSession, Segment, SpanStep
from braid_rpc.v1 import shard_pb2
from braid_services.frames import put_frame
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

TEXT = "the other thing in there, 1234567890: a text of more than one chunk"
LIMITS = LimitsConfig(max_running=8, max_waiting=8, max_batch_tokens=32, prefill_chunk=16)
POINTS = (
    PointConfig(at=1, strategy="mlp"),
    PointConfig(at=1, strategy="router", name="again"),  # an empty span between the two
    PointConfig(at=2, strategy="attention", options={"num_heads": 4}),
)
# Mean difference of a trained braid's log-probabilities in nats, by format: measured 2e-3, 3e-4 and 6e-3. Without
# any update it is 0.7.
NEAR = {"bfloat16": 6e-3, "float16": 1e-3, "int8": 2e-2}


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends()


def with_frames(config: BraidConfig, name: str | None) -> BraidConfig:
    return replace(
        config,
        shards=tuple(replace(shard, frames=name) for shard in config.shards),
        fusion=replace(config.fusion, frames=name),
    )


@pytest.mark.parametrize("transport", TRANSPORTS[1:])
@pytest.mark.parametrize("name", FRAME_FORMATS)
def test_an_untrained_braid_gives_its_anchor_exactly_in_any_format(
    backends: list[ShardBackend], transport: str, name: str
) -> None:
    config = with_frames(braid_config(points=POINTS, readout=ReadoutConfig("anchor"), limits=LIMITS), name)
    with TemporaryDirectory() as sockets, running(config, backends, transport, Path(sockets)) as client:
        options = {"max_tokens": 12, "logprobs": 0, "ignore_eos": True, "seed": 4}
        braided = client.generate(TEXT, **options)
        alone = client.generate(TEXT, use_braiding=False, **options)
    assert braided.token_ids == alone.token_ids
    assert braided.logprobs == alone.logprobs


@pytest.mark.parametrize("transport", TRANSPORTS[1:])
def test_a_trained_braid_is_near_itself_in_any_format(
    backends: list[ShardBackend], tmp_path: Path, transport: str
) -> None:
    config = braid_config(points=POINTS, readout=ReadoutConfig("gate"), limits=LIMITS)
    weights = shaken_weights(config, backends, tmp_path)
    config = replace(config, fusion=replace(config.fusion, weights=str(weights)))

    def logprobs(name: str | None) -> torch.Tensor:
        with (
            TemporaryDirectory() as sockets,
            running(with_frames(config, name), backends, transport, Path(sockets)) as client,
        ):
            return torch.tensor(client.score(TEXT).logprobs[1:])

    exact = logprobs(None)
    assert torch.equal(logprobs("float32"), exact)
    for name, tolerance in NEAR.items():
        assert 0 < float((logprobs(name) - exact).abs().mean()) <= tolerance, name


@pytest.mark.parametrize("injection", ["residual", "replace"])
def test_half_precision_shards_take_int8_frames(tmp_path: Path, injection: str) -> None:
    halves = [
        ShardBackend.from_model(
            tiny_llama(seed).bfloat16(), byte_tokenizer(), ShardConfig(name, name, block_tokens=8)
        )
        for seed, name in ((1, "left"), (2, "right"))
    ]
    point = PointConfig(at=1, strategy="mlp", injection=injection)  # type: ignore[arg-type]
    config = braid_config(points=[point], limits=LIMITS)
    with running(with_frames(config, "int8"), halves, TRANSPORTS[2], tmp_path) as client:
        near = torch.tensor(client.score(TEXT).logprobs[1:])
    with running(config, halves, TRANSPORTS[2], tmp_path) as client:
        exact = torch.tensor(client.score(TEXT).logprobs[1:])
    assert float((near - exact).abs().mean()) < 0.1  # bfloat16 itself is off by about 0.02


def test_frames_wider_than_a_shards_states_are_refused_with_both_named(tmp_path: Path) -> None:
    half = ShardBackend.from_model(tiny_llama(1).bfloat16(), byte_tokenizer(), ShardConfig("left", "left"))
    config = with_frames(braid_config(points=[], names=["left"]), "float32")
    with (
        pytest.raises(ConfigError, match=r"shards\.left\.frames: got 'float32', .* lists: bfloat16, int8"),
        running(config, [half], TRANSPORTS[1], tmp_path),
    ):
        pass


# --- what is sent back ---------------------------------------------------------------------------------------


def sent_back(link: FrameLink, backend: ShardBackend, changed: torch.Tensor | None) -> shard_pb2.Step:
    """The later span's message, after a first span whose reply brought ones."""
    width = backend.card.width
    link.put_states(
        SpanStep(1, 0, 1, False, (Segment("s", 0, 2),), torch.zeros(2, dtype=torch.int64)), shard_pb2.Step()
    )
    frame = shard_pb2.Frame()
    put_frame(torch.ones(2, width), None, frame.hidden)
    given = link.take_states(frame.hidden, 2**20)
    message = shard_pb2.Step()
    link.put_states(SpanStep(1, 1, 3, True, hidden=given if changed is None else changed), message)
    return message


@pytest.mark.parametrize("name", [None, *FRAME_FORMATS])
def test_states_that_nobody_changed_are_not_sent_back(backends: list[ShardBackend], name: str | None) -> None:
    link = FrameLink("shards.left.frames", name, backends[0].card)
    message = sent_back(link, backends[0], None)
    assert message.unchanged
    assert not message.HasField("hidden")
    assert not message.HasField("update")


def test_narrow_frames_bring_updates_and_exact_ones_states(backends: list[ShardBackend]) -> None:
    card = backends[0].card
    changed = torch.full((2, card.width), 3.0)
    exact = sent_back(FrameLink("k", None, card), backends[0], changed)
    assert exact.HasField("hidden")
    assert not exact.frames
    narrow = sent_back(FrameLink("k", "int8", card), backends[0], changed)
    assert narrow.HasField("update")
    assert len(narrow.update.data) == 2 * card.width
    equal = sent_back(FrameLink("k", "int8", card), backends[0], torch.ones(2, card.width))
    assert equal.unchanged


def test_an_older_shard_gets_its_states_back(backends: list[ShardBackend]) -> None:
    older = replace(backends[0].card, frames=())
    message = sent_back(FrameLink("k", None, older), backends[0], None)
    assert message.HasField("hidden")
    assert not message.unchanged


# --- what a shard does with it -------------------------------------------------------------------------------


def test_an_update_and_unchanged_say_what_whole_states_say(backends: list[ShardBackend]) -> None:
    backend = backends[0]
    ids = torch.arange(5)
    push = torch.linspace(-1, 1, 5 * backend.card.width).reshape(5, -1)
    results = []
    for number, how in enumerate(("hidden", "update", "unchanged")):
        stream = backend.stream()
        stream.open([OpenSession("s", 5)])
        begun = stream.step(SpanStep(1, 0, 1, False, (Segment("s", 0, 5),), ids, (4,)))
        moved = stream.step(SpanStep(1, 1, 1, False, hidden=begun.hidden + push))  # an empty span
        states = {
            "hidden": {"hidden": moved.hidden},
            "update": {"update": torch.zeros_like(push)},
            "unchanged": {"unchanged": True},
        }[how]
        half_way = stream.step(SpanStep(1, 1, 2, False, **states))
        last = {"hidden": half_way.hidden + push} if number == 0 else {"update": push}
        results.append(stream.step(SpanStep(1, 2, 3, True, **last)).logits)
        stream.end()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_span_goes_on_with_one_kind_of_states_only(backends: list[ShardBackend]) -> None:
    backend = backends[0]
    stream = backend.stream()
    stream.open([OpenSession("s", 2)])
    first = SpanStep(1, 0, 1, False, (Segment("s", 0, 2),), torch.arange(2), (1,))
    with pytest.raises(StepOrderError, match="without hidden states"):
        stream.step(replace(first, unchanged=True))
    begun = stream.step(first)
    later = SpanStep(1, 1, 3, True)
    for states in (
        {},
        {"unchanged": True, "update": begun.hidden},
        {"hidden": begun.hidden, "unchanged": True},
    ):
        with pytest.raises(StepOrderError, match="only one of them"):
            stream.step(replace(later, **states))
    with pytest.raises(FrameError, match="not of floats"):
        stream.step(replace(later, update=torch.ones(2, backend.card.width, dtype=torch.int64)))
    done = stream.step(replace(later, unchanged=True))
    assert torch.equal(stream.step(replace(later, unchanged=True)).logits, done.logits)  # a repeat
    stream.end()
