"""The engine beside its transports: what an untrained braid gives, what happens when room or a part is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from braids import TRANSPORTS, braid_config, running, shaken_weights, two_backends
from models import save_tiny_model

from braid_orchestrator.config.values import (
    BraidConfig,
    FusionConfig,
    LimitsConfig,
    PointConfig,
    ReadoutConfig,
)
from braid_orchestrator.engine.requests import GenerateRequest
from braid_rpc.errors import ContextLengthError, InvalidRequestError, UnavailableError
from braid_rpc.steps import OpenSession
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

TEXT = "the other thing in there, 1234567890: a text of more than one chunk"
LIMITS = LimitsConfig(
    max_running=8, max_waiting=8, max_batch_tokens=32, prefill_chunk=16, recovery_timeout_s=3.0
)
POINTS = (
    PointConfig(at=1, strategy="mlp"),
    PointConfig(at=2, strategy="attention", options={"num_heads": 4}),
)


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_untrained_braid_gives_its_anchor_exactly(backends: list[ShardBackend], transport: str) -> None:
    strategies = ("weighted", "attention", "router", "mlp", "stitch", "resonance")
    points = [PointConfig(at=1, strategy=name, name=name) for name in strategies]
    config = braid_config(points=points, readout=ReadoutConfig("anchor"), limits=LIMITS)
    with TemporaryDirectory() as sockets, running(config, backends, transport, Path(sockets)) as client:
        for options in ({"temperature": 0.0}, {"seed": 4}):
            braided = client.generate(TEXT, max_tokens=20, logprobs=0, ignore_eos=True, **options)
            alone = client.generate(
                TEXT, max_tokens=20, logprobs=0, ignore_eos=True, use_braiding=False, **options
            )
            assert braided.token_ids == alone.token_ids
            assert braided.logprobs == alone.logprobs


def test_states_can_be_exchanged_at_the_embeddings(backends: list[ShardBackend]) -> None:
    for readout in ("anchor", "gate"):
        config = braid_config(
            points=[PointConfig(at=0, strategy="mlp")], readout=ReadoutConfig(readout), limits=LIMITS
        )
        with running(config, backends, "in process", Path()) as client:
            braided = client.generate(TEXT, temperature=0.0, max_tokens=6, ignore_eos=True)
            alone = client.generate(TEXT, temperature=0.0, max_tokens=6, ignore_eos=True, use_braiding=False)
        assert len(braided.token_ids) == 6
        assert readout == "gate" or braided.token_ids == alone.token_ids


def test_the_anchor_alone_equals_transformers(backends: list[ShardBackend]) -> None:
    config = braid_config(limits=LIMITS)
    with running(config, backends, "in process", Path()) as client:
        prompt = client.engine.text.encode(TEXT).token_ids
        got = client.generate(TEXT, temperature=0.0, max_tokens=20, use_braiding=False, ignore_eos=True)
    with backends[0].plain_model() as model, backends[0].spans.attention("eager"):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
    assert got.token_ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("points", "readout", "alone"),
    [
        (POINTS, "gate", False),
        ((), "mixture", False),
        (POINTS[:1], "anchor", False),
        (POINTS, "gate", True),
    ],
    ids=["two points", "no point", "an augmenting shard stops early", "each shard alone"],
)
def test_a_full_cache_makes_the_youngest_wait_and_changes_no_token(
    tmp_path: Path, points: tuple[PointConfig, ...], readout: str, alone: bool
) -> None:
    roomy = two_backends()
    stream = roomy[1].stream()
    stream.open([OpenSession("probe", 8)])
    block = roomy[1].card.cache_bytes_total - roomy[1].card.cache_bytes_free
    stream.end()
    tight = two_backends(cache_bytes=(5 if alone else 9) * block)
    config = braid_config(points=points, readout=ReadoutConfig(readout), limits=LIMITS)
    asked = [
        {"prompt": prompt, "seed": 1, "max_tokens": 30, "ignore_eos": True}
        | ({"use_braiding": False, "shard": "right" if at % 2 else "left"} if alone else {})
        for at, prompt in enumerate(["the one", "another", "third thing", "the last"])
    ]
    with running(config, roomy, "in process", tmp_path) as client:
        expected = [client.generate(**one).token_ids for one in asked]
    with running(config, tight, "in process", tmp_path) as client:
        waiting = [client.submit(**one) for one in asked]
        got = [client.results(events)[0].token_ids for events in waiting]
        preemptions = client.engine.stats().preemptions
    assert got == expected
    assert preemptions > 0


def test_a_text_as_long_as_the_context_can_be_scored(backends: list[ShardBackend]) -> None:
    with running(braid_config(limits=LIMITS), backends, "in process", Path()) as client:
        assert len(client.score((1, 2, 3, 4) * 64).logprobs) == 256
        with pytest.raises(ContextLengthError):
            client.score((1,) * 257)


def test_scoring_refuses_what_generating_refuses(backends: list[ShardBackend]) -> None:
    with running(braid_config(limits=LIMITS), backends, "in process", Path()) as client:
        for options in ({"shard": "left"}, {"timeout_s": -1.0}, {"timeout_s": float("nan")}):
            with pytest.raises(InvalidRequestError):
                client.score("the one", **options)


def test_one_step_brings_no_more_logits_than_fit_into_a_message(backends: list[ShardBackend]) -> None:
    config = braid_config(limits=LIMITS)
    roomy_shards = tuple(
        replace(shard, max_message_bytes=2**21 + 6 * 4 * (262 + 48)) for shard in config.shards
    )
    config = replace(config, shards=roomy_shards)
    with running(config, backends, "in process", Path()) as client:
        events = [client.submit(TEXT, seed=1, max_tokens=8, ignore_eos=True) for _ in range(3)]
        scored = [client.score(TEXT) for _ in range(2)]
        assert scored[0].logprobs == pytest.approx(scored[1].logprobs, abs=1e-4)
        for one in events:
            assert len(client.results(one)[0].token_ids) == 8


def test_a_repetition_penalty_bites_in_every_readout(backends: list[ShardBackend]) -> None:
    for readout in ("anchor", "mixture", "gate"):
        config = braid_config(readout=ReadoutConfig(readout), limits=LIMITS)
        with running(config, backends, "in process", Path()) as client:
            options = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
            plain = client.generate("the the the", **options).token_ids
            varied = client.generate("the the the", repetition_penalty=2.0, **options).token_ids
        assert len(set(varied)) > len(set(plain))


def test_a_request_that_comes_while_the_engine_stops_is_refused(backends: list[ShardBackend]) -> None:
    with running(braid_config(limits=LIMITS), backends, "in process", Path()) as client:
        client.engine.stop()
        with pytest.raises(UnavailableError, match="shutting down"):
            client.submit("the one")
        with pytest.raises(UnavailableError, match="shutting down"):
            client.engine._enqueue(client.engine._intake.generation(GenerateRequest("a"), "x", print))
        with pytest.raises(UnavailableError, match="has ended"):
            client.engine.check_alive()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_shards_are_the_same_models_to_fusion_weights(tmp_path: Path, dtype: str) -> None:
    folders = [save_tiny_model(tmp_path / str(seed), seed) for seed in (1, 2)]
    shards = tuple(ShardConfig(name, str(folder)) for name, folder in zip("ab", folders, strict=True))
    full = replace(braid_config(points=POINTS, limits=LIMITS, names="ab"), shards=shards)
    weights = shaken_weights(full, [ShardBackend.load(shard) for shard in shards], tmp_path / "weights")
    half = replace(
        full,
        shards=(replace(shards[0], dtype=dtype), shards[1]),
        fusion=FusionConfig(placement="embedded", weights=str(weights)),
    )
    expected, got = (
        scores(replace(full, fusion=half.fusion)),
        scores(half),
    )
    assert 0 < max(abs(a - b) for a, b in zip(expected, got, strict=True)) < 0.5


def scores(config: BraidConfig) -> tuple[float, ...]:
    backends = [ShardBackend.load(shard) for shard in config.shards]
    with running(config, backends, "in process", Path()) as client:
        return client.score(TEXT).logprobs
