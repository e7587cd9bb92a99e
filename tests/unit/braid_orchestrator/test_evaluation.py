"""Bits per byte, and whole texts through a braid, against plain sums."""

from __future__ import annotations

import math

import pytest
import torch
from models import tiny_backend

from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig, PointConfig, ReadoutConfig
from braid_orchestrator.evaluation import (
    BRAID,
    UNIFORM,
    EncodedText,
    bits_per_byte,
    compare_braid,
    encode_windows,
    shard_scorer,
    target_logprobs,
)
from braid_services.shard.backend import ShardBackend

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind; né à Zürich. " * 4


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return [tiny_backend("left", 1), tiny_backend("right", 2, width=48)]


def stack_of(backends: list[ShardBackend], readout: str) -> FusionStack:
    config = BraidConfig(
        name="t",
        anchor="left",
        shards=tuple(backend.config for backend in backends),
        points=(PointConfig(1),),
        readout=ReadoutConfig(readout),  # type: ignore[arg-type]
    )
    return FusionStack(resolve_plan(config, [backend.card for backend in backends]))


def test_a_uniform_model_needs_the_logarithm_of_its_choices(backends: list[ShardBackend]) -> None:
    text = encode_windows(backends[0], [TEXT], 32)
    logprobs = torch.full((text.windows[:, 1:].numel(),), -math.log(256.0))
    assert bits_per_byte(logprobs, text.num_bytes) == pytest.approx(8.0 * logprobs.numel() / text.num_bytes)


def test_windows_hold_the_text_and_count_its_bytes(backends: list[ShardBackend]) -> None:
    text = encode_windows(backends[0], [TEXT, TEXT], 16)
    predicted = torch.cat([text.windows[:1, :1].flatten(), text.windows[:, 1:].flatten()])
    joined = f"{TEXT}\n\n{TEXT}"
    found = backends[0].detokenize(predicted.tolist())
    assert joined.startswith(found.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert text.num_bytes == len(found.encode()) - 1
    with pytest.raises(ValueError, match="at least 100001"):
        encode_windows(backends[0], [TEXT], 100_000)


def test_scores_equal_the_plain_forward(backends: list[ShardBackend]) -> None:
    text = encode_windows(backends[0], [TEXT], 32)
    logits = backends[0].model(text.windows[:, :-1]).logits.log_softmax(-1)
    expected = logits.gather(2, text.windows[:, 1:, None]).flatten()
    torch.testing.assert_close(
        target_logprobs(shard_scorer(backends[0]), text), expected, atol=1e-4, rtol=1e-4
    )


def test_an_untrained_braid_is_its_anchor_or_the_plain_average(backends: list[ShardBackend]) -> None:
    texts = {"text": [TEXT]}
    seen: list[float] = []
    by_anchor = compare_braid(backends, stack_of(backends, "anchor"), texts, 32, seen.append)
    assert by_anchor[BRAID]["text"] == pytest.approx(by_anchor["left"]["text"], abs=1e-5)
    by_gate = compare_braid(backends, stack_of(backends, "gate"), texts, 32)
    assert by_gate[BRAID]["text"] == pytest.approx(by_gate[UNIFORM]["text"], abs=1e-5)
    assert list(by_gate) == ["left", "right", UNIFORM, BRAID]
    assert seen == sorted(seen) and seen[-1] == 1.0


def test_more_windows_than_fit_at_once_change_nothing(
    backends: list[ShardBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = encode_windows(backends[0], [TEXT], 16)
    whole = target_logprobs(shard_scorer(backends[0]), text)
    monkeypatch.setattr("braid_orchestrator.evaluation.ROWS_AT_ONCE", 32)
    torch.testing.assert_close(target_logprobs(shard_scorer(backends[0]), text), whole, atol=1e-5, rtol=1e-5)


def test_a_text_is_worth_as_much_in_any_order(backends: list[ShardBackend]) -> None:
    text = encode_windows(backends[0], [TEXT], 16)
    backwards = EncodedText(text.windows.flip(0), text.num_bytes)
    scorer = shard_scorer(backends[0])
    assert bits_per_byte(target_logprobs(scorer, text), text.num_bytes) == pytest.approx(
        bits_per_byte(target_logprobs(scorer, backwards), text.num_bytes), abs=1e-5
    )
