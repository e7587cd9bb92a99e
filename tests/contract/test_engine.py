"""What must hold of a braid, over every transport: in process, and over real gRPC with the fusion modules
embedded or served."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from braids import (
    Client,
    oracle_log_probs,
    running,
    shake,
)

from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig, LimitsConfig, PointConfig
from braid_rpc.errors import (
    ContextLengthError,
    DeadlineError,
    InvalidRequestError,
    QueueFullError,
    RequestCancelledError,
    UnknownShardError,
)
from braid_services.shard.backend import ShardBackend

TEXT = "the other thing in there, 1234567890: a text of more than one chunk — with “quotes” and 🧶"
# Two orders of summation of the same float32 numbers.
TOLERANCE = 1e-4

LIMITS = LimitsConfig(
    max_running=8, max_waiting=8, max_batch_tokens=32, prefill_chunk=16, recovery_timeout_s=3.0
)
POINTS = (
    PointConfig(at=1, strategy="mlp"),
    PointConfig(at=2, strategy="attention", options={"num_heads": 4}),
    PointConfig(at=2, strategy="resonance", name="resonance"),
)


@pytest.fixture
def free_before(client: Client, backends: list[ShardBackend]) -> Iterator[None]:
    """Whatever the test does, the caches are back to where they were (property 9)."""
    before = [backend.card for backend in backends]
    yield
    deadline = time.monotonic() + 10
    while [b.card for b in backends] != before and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert [backend.card for backend in backends] == before
    assert client.engine.stats().running == client.engine.stats().waiting == 0


pytestmark = pytest.mark.usefixtures("free_before")


def oracle(config: BraidConfig, backends: list[ShardBackend], token_ids: tuple[int, ...]) -> torch.Tensor:
    plan = resolve_plan(config, [backend.card for backend in backends])
    stack = FusionStack(plan)
    shake(stack, 3)
    return oracle_log_probs(plan, stack, backends, token_ids)


def test_scores_in_chunks_equal_the_whole_text_at_once(
    client: Client, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    result = client.score(TEXT)
    log_probs = oracle(config, backends, result.token_ids)
    expected = log_probs[:-1].gather(1, torch.tensor(result.token_ids)[1:, None])[:, 0]
    assert torch.allclose(torch.tensor(result.logprobs[1:]), expected, atol=TOLERANCE)
    assert result.tokens[:2] == ("the", " ")
    assert result.num_bytes == len(TEXT.encode()) - len("the")


def test_alternatives_of_scored_tokens_are_the_likeliest_of_their_place(
    client: Client, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    result = client.score(TEXT, top_logprobs=3)
    expected = oracle(config, backends, result.token_ids)[:-1].topk(3)
    assert result.top_logprobs[0] == ()
    got = result.top_logprobs[1:]
    assert [[top.token_id for top in row] for row in got] == expected.indices.tolist()
    assert torch.allclose(
        torch.tensor([[top.logprob for top in row] for row in got]), expected.values, atol=TOLERANCE
    )
    assert client.score(TEXT).top_logprobs == ()


def test_token_by_token_equals_the_whole_text_at_once(
    client: Client, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    prompt = client.engine.text.encode(TEXT).token_ids
    result = client.generate(TEXT, temperature=0.0, max_tokens=12, logprobs=0, ignore_eos=True)
    log_probs = oracle(config, backends, (*prompt, *result.token_ids))[len(prompt) - 1 : -1]
    assert result.token_ids == log_probs.argmax(-1).tolist()
    assert torch.allclose(torch.tensor(result.logprobs), log_probs.amax(-1), atol=TOLERANCE)


def test_fusion_and_readout_matter(client: Client) -> None:
    """Otherwise the tests around this one could not fail."""
    braided = client.score(TEXT).logprobs
    for shard in ("left", "right"):
        alone = client.score(TEXT, use_braiding=False, shard=shard).logprobs
        assert max(abs(a - b) for a, b in zip(alone, braided, strict=True)) > 0.1


def test_the_same_seed_gives_the_same_tokens_on_every_transport(
    client: Client, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    with running(config, backends, "in process", Path()) as local:
        expected = local.generate("in the", seed=11, max_tokens=24, ignore_eos=True)
    got = client.generate("in the", seed=11, max_tokens=24, ignore_eos=True)
    assert got.token_ids == expected.token_ids
    assert got.text == expected.text


def test_a_session_does_not_depend_on_its_batch(client: Client) -> None:
    alone = client.generate("the thing", seed=5, max_tokens=16, logprobs=0, ignore_eos=True)
    others = [
        client.submit(TEXT[: 7 * count], seed=count, max_tokens=20, ignore_eos=True) for count in range(1, 5)
    ]
    solo = client.submit("other text", use_braiding=False, shard="right", max_tokens=9)
    among = client.generate("the thing", seed=5, max_tokens=16, logprobs=0, ignore_eos=True)
    for events in [*others, solo]:
        client.results(events)
    assert among.token_ids == alone.token_ids
    assert torch.allclose(torch.tensor(among.logprobs), torch.tensor(alone.logprobs), atol=TOLERANCE)


@pytest.mark.parametrize("at", [1, 20, 40])
def test_later_text_changes_no_earlier_output(client: Client, at: int) -> None:
    token_ids = client.engine.text.encode(TEXT).token_ids
    changed = (*token_ids[:at], *((token_id + 1) % 256 for token_id in token_ids[at:]))
    before, after = client.score(token_ids).logprobs[:at], client.score(changed).logprobs[:at]
    assert torch.allclose(torch.tensor(before), torch.tensor(after), atol=TOLERANCE)


def test_weights_sum_to_one_and_name_the_shards(client: Client) -> None:
    result = client.generate("the", max_tokens=5, ignore_eos=True)
    assert all(set(weights) == {"left", "right"} for weights in result.weights)
    assert all(abs(sum(weights.values()) - 1) < 1e-5 for weights in result.weights)
    alone = client.generate("the", max_tokens=5, use_braiding=False, shard="right", ignore_eos=True)
    assert all(weights == {"left": 0.0, "right": 1.0} for weights in alone.weights)


def test_choices_differ_and_repeat_with_their_seed(client: Client) -> None:
    first = client.results(client.submit("the", n=3, seed=1, max_tokens=8, ignore_eos=True))
    again = client.results(client.submit("the", n=3, seed=1, max_tokens=8, ignore_eos=True))
    assert len({tuple(result.token_ids) for result in first}) == 3
    assert [r.token_ids for r in first] == [r.token_ids for r in again]


def test_stop_strings_end_the_text_before_them(client: Client) -> None:
    options = {"seed": 3, "max_tokens": 30, "ignore_eos": True}
    whole = client.generate("the", **options)
    assert len(whole.text) > 8
    stop = whole.text[4:7]
    cut = client.generate("the", stop=(stop,), **options)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    ended = client.generate("the", stop_token_ids=(whole.token_ids[2],), **options)
    assert ended.token_ids == whole.token_ids[: whole.token_ids.index(whole.token_ids[2]) + 1]
    assert ended.stop_reason == whole.token_ids[2]


def test_cancelling_frees_everything(client: Client) -> None:
    events = client.submit("the", max_tokens=200, request_id="mine", ignore_eos=True)
    events.get(timeout=30)
    assert client.engine.cancel("mine")
    with pytest.raises(RequestCancelledError, match="mine"):
        client.results(events)
    assert not client.engine.cancel("mine")


def test_a_deadline_ends_a_request(client: Client) -> None:
    with pytest.raises(DeadlineError, match=r"longer than 0\.05 s"):
        client.generate(TEXT, max_tokens=150, timeout_s=0.05, ignore_eos=True)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (InvalidRequestError, "temperature: got -1", {"temperature": -1.0}),
        (InvalidRequestError, "empty prompt", {"prompt": ""}),
        (InvalidRequestError, "token id 999, expected between 0 and 261", {"prompt": (1, 999)}),
        (InvalidRequestError, "logit_bias: got token id 4000", {"logit_bias": {4000: 1.0}}),
        (ContextLengthError, "at most 255: shard 'left' holds 256", {"max_tokens": 256}),
        (ContextLengthError, "got 4000000 characters, expected at most 1280", {"prompt": "x" * 4_000_000}),
        (ContextLengthError, "prompt: got 300 tokens, expected fewer than 256", {"prompt": (1,) * 300}),
        (
            UnknownShardError,
            "got 'middle', expected one of left, right",
            {"use_braiding": False, "shard": "middle"},
        ),
        (InvalidRequestError, "use_braiding false", {"shard": "left"}),
        (InvalidRequestError, "n: got 0", {"n": 0}),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: Client, error: type[Exception], match: str, options: dict[str, object]
) -> None:
    with pytest.raises(error, match=match):
        client.submit(**{"prompt": "the"} | options)  # type: ignore[arg-type]


def test_a_full_queue_says_when_to_come_back(client: Client) -> None:
    taken = []
    with pytest.raises(QueueFullError, match="expected at most 8") as refused:
        for _ in range(30):
            taken.append(client.submit(TEXT, max_tokens=60, ignore_eos=True))
    assert refused.value.retry_after_s > 0
    for events in taken:
        client.results(events)
