"""The engine beside its transports: what an untrained braid gives, what happens when room or a part is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from braids import TRANSPORTS, braid_config, running, shaken_weights, two_backends
from models import save_tiny_model

from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import (
    BraidConfig,
    FusionConfig,
    LimitsConfig,
    PointConfig,
    ReadoutConfig,
)
from braid_rpc.errors import ConfigError
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
    strategies = ("weighted", "attention", "router", "mlp")
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


def test_a_full_cache_makes_the_youngest_wait_and_changes_no_token(tmp_path: Path) -> None:
    roomy = two_backends()
    stream = roomy[1].stream()
    stream.open([OpenSession("probe", 8)])
    block = roomy[1].card.cache_bytes_total - roomy[1].card.cache_bytes_free
    stream.end()
    tight = two_backends(cache_bytes=9 * block)
    config = braid_config(points=POINTS, limits=LIMITS)
    prompts = ["the one", "another", "third thing"]
    with running(config, roomy, "in process", tmp_path) as client:
        expected = [client.generate(p, seed=1, max_tokens=30, ignore_eos=True).token_ids for p in prompts]
    with running(config, tight, "in process", tmp_path) as client:
        waiting = [client.submit(p, seed=1, max_tokens=30, ignore_eos=True) for p in prompts]
        got = [client.results(events)[0].token_ids for events in waiting]
        preemptions = client.engine.stats().preemptions
    assert got == expected
    assert preemptions > 0


def test_shards_of_different_tokenizers_are_refused(backends: list[ShardBackend]) -> None:
    cards = [backends[0].card, replace(backends[1].card, tokenizer_hash="another")]
    with pytest.raises(ConfigError, match="expected shards of one tokenizer"):
        resolve_plan(braid_config(), cards)


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
