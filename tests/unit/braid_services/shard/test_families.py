"""Whatever the family, and wherever it is cut: a shard gives the model's own numbers."""

from __future__ import annotations

import re
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from families import FAMILIES, UNSUPPORTED, VOCAB, make_model
from torch import Tensor

from braid_rpc.errors import ContextLengthError, UnsupportedModelError
from braid_rpc.steps import OpenSession
from braid_services.shard.backend import ShardBackend
from braid_services.shard.families import TESTED

from .conftest import Driver, make_backend, plain_logits

# float32, relative to the largest logit: sums taken in another order.
TOLERANCE = 1e-5


def ids_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def assert_same(got: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= TOLERANCE * max(scale, 1.0)


def test_cutting_anywhere_changes_nothing(family_backend: ShardBackend) -> None:
    layers = range(family_backend.spans.num_layers)
    all_cuts = list(chain.from_iterable(combinations(layers, n) for n in range(len(layers) + 1)))
    ids = ids_of(11)
    expected = plain_logits(family_backend, ids)
    driver = Driver(family_backend)
    for number, cuts in enumerate(all_cuts):
        driver.stream.open([OpenSession(str(number), 11)])
        assert_same(driver.run([(str(number), 0, ids)], cuts).logits, expected)
    driver.stream.end()


def test_packed_ragged_sessions_equal_each_alone(family_backend: ShardBackend) -> None:
    texts = [ids_of(length, seed=length) for length in (9, 1, 12, 5)]
    expected = [plain_logits(family_backend, ids) for ids in texts]
    driver = Driver(family_backend)
    driver.stream.open([OpenSession(str(i), 0) for i in range(len(texts))])
    logits = driver.run([(str(i), 0, ids) for i, ids in enumerate(texts)], cuts=(1,)).logits
    for got, wanted in zip(torch.split(logits, [len(ids) for ids in texts]), expected, strict=True):
        assert_same(got, wanted)
    driver.stream.end()


def test_cached_equals_full_in_any_chunks(family_backend: ShardBackend) -> None:
    ids, other = ids_of(20), ids_of(16, seed=1)
    expected, expected_other = plain_logits(family_backend, ids), plain_logits(family_backend, other)
    driver = Driver(family_backend)
    driver.stream.open([OpenSession("a", 3), OpenSession("b", 16)])
    got, got_other, place, place_other = [], [], 0, 0
    for chunk, chunk_other in [(1, 5), (6, 1), (1, 1), (1, 6), (5, 1), (1, 1), (4, 1), (1, 0)]:
        rows = [("a", place, ids[place : place + chunk])]
        if chunk_other:
            rows.append(("b", place_other, other[place_other : place_other + chunk_other]))
        logits = driver.run(rows, cuts=(0, 2)).logits
        got.append(logits[:chunk])
        got_other.append(logits[chunk:])
        place, place_other = place + chunk, place_other + chunk_other
    assert_same(torch.cat(got), expected)
    assert_same(torch.cat(got_other), expected_other)
    driver.stream.end()


def test_cropping_and_going_on_equals_the_other_text(family_backend: ShardBackend) -> None:
    ids, detour = ids_of(14), ids_of(9, seed=5)
    driver = Driver(family_backend)
    driver.stream.open([OpenSession("a", 0)])
    driver.run([("a", 0, torch.cat([ids[:6], detour]))])
    driver.stream.crop("a", 6)
    logits = driver.run([("a", 6, ids[6:])], cuts=(1,)).logits
    assert_same(logits, plain_logits(family_backend, ids)[6:])
    driver.stream.end()


def test_stateless_forward_equals_plain_and_carries_gradients(family_backend: ShardBackend) -> None:
    for lengths in ([5, 9, 2], [6, 6]):
        texts = [ids_of(length, seed=length) for length in lengths]
        forward = family_backend.forward(torch.cat(texts), lengths)
        shift = torch.zeros(sum(lengths), family_backend.spans.width, requires_grad=True)
        hidden = forward.run_to(1)
        _, logits = forward.finish(forward.resume(hidden + shift, 2) * 1.0)
        expected = torch.cat([plain_logits(family_backend, ids) for ids in texts])
        assert_same(logits.detach(), expected)
        logits.square().mean().backward()
        assert shift.grad is not None
        assert bool((shift.grad.abs().sum(-1) > 0).all())
    assert not any(parameter.grad is not None for parameter in family_backend.model.parameters())


def test_only_the_wanted_rows_reach_the_head(family_backend: ShardBackend) -> None:
    ids = ids_of(10)
    expected = plain_logits(family_backend, ids)
    driver = Driver(family_backend)
    driver.stream.open([OpenSession("a", 0), OpenSession("b", 0)])
    result = driver.run([("a", 0, ids)], cuts=(1,), logit_rows=(2, 9))
    assert result.hidden.shape == (2, family_backend.spans.width)
    assert result.logits is not None
    assert_same(result.logits, expected[[2, 9]])
    result = driver.run([("b", 0, ids)], logit_rows=())
    assert result.hidden.shape == (0, family_backend.spans.width)
    assert result.logits is not None
    assert result.logits.shape == (0, VOCAB)
    driver.stream.end()


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_models_that_would_give_wrong_numbers_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError) as refusal:
        make_backend(make_model(family))
    assert re.fullmatch(
        rf"{family}: .+ \(its layers .+\); families that work: llama, mistral, .+", refusal.value.message
    )


def test_the_families_that_are_said_to_work_are_tested_here() -> None:
    assert {family.removesuffix("_text") for family in FAMILIES} >= set(TESTED)


@pytest.mark.parametrize(
    ("family", "changes", "length"),
    [
        ("phimoe", {"sliding_window": 12, "num_local_experts": 4}, 12),
        ("phimoe", {"sliding_window": None, "num_local_experts": 4}, 64),
        (
            "llama4_text",
            {"attention_chunk_size": 12, "intermediate_size_mlp": 48, "num_local_experts": 2},
            12,
        ),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 12}, 64),
        ("mistral", {"sliding_window": 12}, 64),
    ],
)
def test_a_window_in_the_mask_alone_limits_the_context(
    family: str, changes: dict[str, Any], length: int
) -> None:
    backend = make_backend(make_model(family, **changes))
    assert backend.context_length == length
    ids = ids_of(length)
    driver = Driver(backend)
    driver.stream.open([OpenSession("a", 0)])
    assert_same(driver.run([("a", 0, ids)], cuts=(1,)).logits, plain_logits(backend, ids))
    with pytest.raises(ContextLengthError):
        driver.run([("a", length, ids[:1])])
    driver.stream.end()


def test_a_head_that_reads_another_width_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="width 16, expected the layers' own width 32"):
        make_backend(make_model("opt", word_embed_proj_dim=16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_pass_the_parity_check(dtype: torch.dtype) -> None:
    backend = make_backend(make_model("gemma2").to(dtype))
    assert backend.card.dtype == str(dtype).removeprefix("torch.")
    driver = Driver(backend)
    driver.stream.open([OpenSession("a", 0)])
    assert driver.run([("a", 0, ids_of(6))], cuts=(1, 2)).hidden.dtype == dtype
    driver.stream.end()
