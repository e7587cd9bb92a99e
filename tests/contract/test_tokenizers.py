"""A braid of shards with different tokenizers, widths and depths: token by token is the whole text at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from braids import TRANSPORTS, Client, braid_config, running, shaken_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import reading_backend
from tokenizations import GPT2_FOLDER, KINDS, SHARED

from braid_fusion.weights import load_stack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig, LimitsConfig, PointConfig, ReadoutConfig
from braid_orchestrator.inprocess.whole_text import run_whole
from braid_rpc.errors import ContextLengthError
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

# Two orders of the same sums in float32.
TOLERANCE = 1e-4
NAMES = ("anchor", "spiece", "words")
KINDS_OF_THREE = ("byte bpe", "llama", "words")
PROMPT = "Once upon a time, there was a größe 🙂 fox; they're friends, aren't"
POINTS = (
    PointConfig(at=1, strategy="attention"),
    PointConfig(at=2, strategy="mlp"),
    PointConfig(at=3, strategy="router"),
)
TEXTS = st.one_of(
    st.text(min_size=1, max_size=60),
    st.lists(st.sampled_from(PROMPT.split()), min_size=1, max_size=12).map(" ".join),
)


def three_backends(**options: int) -> list[ShardBackend]:
    shapes = [{"width": 32, "num_layers": 4}, {"width": 48, "num_layers": 5}, {"width": 24, "num_layers": 4}]
    shapes[2]["context"] = 512
    return [
        reading_backend(name, kind, seed, **{"context": 512, **shape, **options})
        for seed, (name, kind, shape) in enumerate(zip(NAMES, KINDS_OF_THREE, shapes, strict=True))
    ]


def configure(tmp: Path, backends: list[ShardBackend], **options: object) -> BraidConfig:
    config = braid_config(**{"points": POINTS, "names": NAMES, **options})  # type: ignore[arg-type]
    weights = shaken_weights(config, backends, tmp / "weights")
    return braid_config(**{"points": POINTS, "names": NAMES, **options, "weights": weights})  # type: ignore[arg-type]


def whole_log_probs(config: BraidConfig, backends: list[ShardBackend], ids: list[int]) -> torch.Tensor:
    """(T, V), from one pass over the whole text, without engine and caches."""
    plan = resolve_plan(config, [backend.card for backend in backends])
    stack = load_stack(plan, Path(config.fusion.weights) / "v3")
    with torch.inference_mode():
        return run_whole(backends, stack, torch.tensor(ids), [len(ids)]).scores.log_softmax(-1)


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return three_backends()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, backends: list[ShardBackend]) -> BraidConfig:
    return configure(tmp_path_factory.mktemp("weights"), backends)


@pytest.fixture(scope="module")
def client(config: BraidConfig, backends: list[ShardBackend], tmp_path_factory) -> Iterator[Client]:
    with running(config, backends, "in process", tmp_path_factory.mktemp("sockets")) as client:
        yield client


@pytest.mark.parametrize("readout", ["anchor", "mixture", "gate"])
@pytest.mark.parametrize("strategy", ["attention", "mlp", "resonance", "router", "stitch", "weighted"])
def test_token_by_token_is_the_whole_text_at_once(
    strategy: str, readout: str, backends: list[ShardBackend], tmp_path: Path
) -> None:
    points = (PointConfig(at=1, strategy=strategy), PointConfig(at=0.7, strategy=strategy))
    config = configure(tmp_path, backends, points=points, readout=ReadoutConfig(readout))
    with running(config, backends, "in process", tmp_path) as client:
        result = client.generate(PROMPT, max_tokens=24, seed=1, logprobs=0, ignore_eos=True)
        prompt = list(client.engine.text.encode(PROMPT).token_ids)
    ids = prompt + result.token_ids
    expected = whole_log_probs(config, backends, ids)
    for at, (token_id, logprob) in enumerate(
        zip(result.token_ids, result.logprobs, strict=True), len(prompt)
    ):
        assert float(expected[at - 1, token_id]) == pytest.approx(logprob, abs=TOLERANCE)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_any_text_scores_as_it_does_at_once(
    text: str, client: Client, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    ids = list(client.engine.text.encode(text).token_ids)
    scored = client.score(tuple(ids))
    expected = whole_log_probs(config, backends, ids)
    for at in range(1, len(ids)):
        assert float(expected[at - 1, ids[at]]) == pytest.approx(scored.logprobs[at], abs=TOLERANCE)


@settings(max_examples=20)
@given(ids=st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_any_bytes_do(
    ids: list[int], client: Client, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    """Ids of the anchor that make no valid UTF-8, special ones among them."""
    scored = client.score(tuple(ids))
    expected = whole_log_probs(config, backends, ids)
    for at in range(1, len(ids)):
        assert float(expected[at - 1, ids[at]]) == pytest.approx(scored.logprobs[at], abs=TOLERANCE)


def test_later_text_changes_no_earlier_output(
    client: Client, config: BraidConfig, backends: list[ShardBackend]
) -> None:
    ids = list(client.engine.text.encode(PROMPT).token_ids)
    whole = whole_log_probs(config, backends, ids)
    for count in range(1, len(ids), 5):
        other = whole_log_probs(config, backends, ids[:count] + ids[::-1])
        torch.testing.assert_close(other[:count], whole[:count], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_transport_gives_the_same_tokens(
    transport: str, config: BraidConfig, backends: list[ShardBackend], client: Client, tmp_path: Path
) -> None:
    expected = client.generate(PROMPT, max_tokens=16, seed=5, ignore_eos=True)
    with running(config, backends, transport, tmp_path) as other:
        assert other.generate(PROMPT, max_tokens=16, seed=5, ignore_eos=True).token_ids == expected.token_ids


@pytest.mark.parametrize("limits", [{"prefill_chunk": 1}, {"prefill_chunk": 3}, {"max_batch_tokens": 5}])
def test_chunks_make_no_difference(
    limits: dict[str, int], config: BraidConfig, backends: list[ShardBackend], client: Client, tmp_path: Path
) -> None:
    expected = client.generate(PROMPT, max_tokens=8, seed=5, logprobs=0, ignore_eos=True)
    small = configure(tmp_path, backends, limits=LimitsConfig(**limits))
    with running(small, backends, "in process", tmp_path) as other:
        got = other.generate(PROMPT, max_tokens=8, seed=5, logprobs=0, ignore_eos=True)
    assert got.token_ids == expected.token_ids
    assert got.logprobs == pytest.approx(expected.logprobs, abs=TOLERANCE)


def test_many_at_once_are_as_alone_and_leave_nothing_behind(client: Client) -> None:
    prompts = [PROMPT, "x", "Größe 🙂", "def f(x):\n    return", " ", "you 你好,世界。 ok"]
    alone = [client.generate(p, max_tokens=12, seed=i, logprobs=0) for i, p in enumerate(prompts)]
    inboxes = [client.submit(p, max_tokens=12, seed=i, logprobs=0) for i, p in enumerate(prompts)]
    for inbox, expected in zip(inboxes, alone, strict=True):
        got = client.results(inbox)[0]
        assert got.token_ids == expected.token_ids
        assert got.logprobs == pytest.approx(expected.logprobs, abs=TOLERANCE)
    assert_caches_are_free(client)


def assert_caches_are_free(client: Client) -> None:
    """Soon: a request's last event comes before its sessions are closed."""
    deadline = time.monotonic() + 10
    while (stats := client.engine.stats()).cache_bytes_free != stats.cache_bytes_total:
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)


def test_choices_of_one_prompt_go_their_own_ways(client: Client) -> None:
    both = client.results(
        client.submit("Once upon", max_tokens=10, seed=1, n=3, temperature=2.0, ignore_eos=True)
    )
    assert len({tuple(one.token_ids) for one in both}) == 3


@pytest.mark.parametrize("anchor", KINDS)
def test_any_tokenizer_may_lead_and_untrained_it_is_as_alone(anchor: str, tmp_path: Path) -> None:
    """Property 2, with every kind of tokenizer as the anchor's and all others reading along."""
    kinds = [anchor, *(kind for kind in ("bytes", "llama", "words") if kind != anchor)][:3]
    names = ["lead", "second", "third"]
    backends = [
        reading_backend(name, kind, seed, context=512)
        for seed, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    config = braid_config(points=POINTS[:2], names=names, readout=ReadoutConfig("anchor"))
    with running(config, backends, "in process", tmp_path) as client:
        braided = client.generate(PROMPT, max_tokens=12, temperature=0)
        alone = client.generate(PROMPT, max_tokens=12, temperature=0, use_braiding=False)
        assert braided.token_ids == alone.token_ids
        assert braided.text == alone.text


def test_a_shard_alone_reads_and_writes_by_its_own_tokenizer(
    client: Client, backends: list[ShardBackend], tmp_path: Path
) -> None:
    single = braid_config(points=(), names=NAMES[1:2], readout=ReadoutConfig("anchor"))
    with running(single, backends[1:2], "in process", tmp_path) as other:
        expected = other.generate(PROMPT, max_tokens=12, temperature=0)
    got = client.generate(PROMPT, max_tokens=12, temperature=0, use_braiding=False, shard="spiece")
    assert (got.token_ids, got.text) == (expected.token_ids, expected.text)


def test_a_full_cache_in_the_middle_changes_nothing(
    config: BraidConfig, client: Client, tmp_path: Path
) -> None:
    tight = three_backends(cache_bytes=130 * 2**10)
    prompts = [(f"{PROMPT} {i}", i) for i in range(3)]
    alone = [client.generate(p, max_tokens=40, seed=i, ignore_eos=True) for p, i in prompts]
    with running(config, tight, "in process", tmp_path) as other:
        inboxes = [other.submit(p, max_tokens=40, seed=i, ignore_eos=True) for p, i in prompts]
        got = [other.results(inbox)[0] for inbox in inboxes]
        assert_caches_are_free(other)
        assert other.engine.stats().preemptions > 0
    assert [one.token_ids for one in got] == [one.token_ids for one in alone]


def test_a_shard_that_can_hold_no_more_ends_the_text(tmp_path: Path) -> None:
    backends = [
        reading_backend("lead", "llama", 0, context=512),
        reading_backend("bytes", "bytes", 1, context=64),
    ]
    config = braid_config(points=POINTS[:1], names=["lead", "bytes"], readout=ReadoutConfig("gate"))
    # Special tokens have no text, so nothing for the others to read.
    silent = dict.fromkeys(backends[0].tokenizer.backend_tokenizer.get_added_tokens_decoder(), -100.0)
    with running(config, backends, "in process", tmp_path) as client:
        result = client.generate("Once upon a time", max_tokens=200, temperature=0, logit_bias=silent)
        assert result.finish_reason == "length"
        assert 1 <= len(result.token_ids) < 200
        with pytest.raises(ContextLengthError, match=r"tokenizer of shard 'bytes', expected at most 64"):
            client.generate("Once upon a time " * 10, max_tokens=1)


@pytest.mark.parametrize("readout", ["anchor", "gate"])
def test_real_models_and_tokenizers_read_each_other(readout: str, tmp_path: Path) -> None:
    """Two real models of 512 pieces each, GPT-2's tokenizer, bytes and words."""
    folders = [SHARED / "models" / name for name in ("stories260K", "aidreams260K")]
    wanted = [*folders, GPT2_FOLDER]
    if not all(folder.exists() for folder in wanted):
        pytest.skip(f"needs {', '.join(map(str, wanted))}")
    shards = [ShardConfig(name=folder.name, model=str(folder), cache_bytes=2**24) for folder in folders]
    backends = [ShardBackend.load(shard) for shard in shards]
    backends += [
        reading_backend(kind, kind, seed, context=512) for seed, kind in enumerate(("gpt2", "bytes", "words"))
    ]
    names = [backend.card.name for backend in backends]
    config = configure(tmp_path, backends, points=POINTS, names=names, readout=ReadoutConfig(readout))
    prompt = "Once upon a time, there was a girl named Lily. She didn't 🙂 say"
    with running(config, backends, "in process", tmp_path) as client:
        result = client.generate(prompt, max_tokens=16, seed=1, logprobs=0, ignore_eos=True)
        ids = list(client.engine.text.encode(prompt).token_ids) + result.token_ids
    expected = whole_log_probs(config, backends, ids)
    for at in range(len(result.token_ids)):
        row = len(ids) - len(result.token_ids) + at
        assert float(expected[row - 1, ids[row]]) == pytest.approx(result.logprobs[at], abs=TOLERANCE)
