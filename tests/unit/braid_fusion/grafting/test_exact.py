"""Untrained, a wrapper changes no bit of any family's output, whichever way the model is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, UNSUPPORTED, VOCAB, make_model
from grafts import graft, randomise
from torch import Tensor

from braid_fusion import FusionConfig, ResonanceWrapper

PADDED = torch.tensor([[0] * 3 + [1] * 6, [1] * 9])


def ids_of(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def runs(model: Any) -> list[Tensor]:
    """Logits and tokens of one and the same model, run in every way that matters."""
    ids, results = ids_of(2, 9), []
    with torch.no_grad():
        for options in ({"use_cache": False}, {}, {"attention_mask": PADDED}):
            results.append(model(input_ids=ids, **options).logits)
        step = model(input_ids=ids[:, :5], attention_mask=PADDED[:, :5], use_cache=True)
        for end in (7, 8, 9):
            start = step.past_key_values.get_seq_length()
            step = model(
                input_ids=ids[:, start:end],
                attention_mask=PADDED[:, :end],
                past_key_values=step.past_key_values,
            )
            results.append(step.logits)
        options = {"attention_mask": PADDED, "max_new_tokens": 4, "pad_token_id": 2, "do_sample": False}
        for more in ({}, {"use_cache": False}, {"num_beams": 2, "num_return_sequences": 2}):
            out = model.generate(ids, output_logits=True, return_dict_in_generate=True, **{**options, **more})
            results += [out.sequences, *out.logits]
        torch.manual_seed(5)
        results.append(model.generate(ids, **{**options, "do_sample": True, "num_return_sequences": 2}))
    return results


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids_of(2, 9), use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_untrained_wrapper_is_the_base_model_bit_for_bit(family: str) -> None:
    # Frozen in both: torch multiplies a strided row (the head's, in generate) another way by weights with gradient.
    model = make_model(family).requires_grad_(False)
    expected = runs(model)
    wrapper = ResonanceWrapper(model, FusionConfig.full())
    for got, wanted in zip(runs(wrapper), expected, strict=True):
        assert torch.equal(got, wanted)
    randomise(wrapper)
    assert not torch.equal(logits(wrapper), expected[0])
    assert torch.equal(logits(wrapper.unwrap()), expected[0])


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_families_that_shards_cannot_serve_are_grafted_all_the_same(family: str) -> None:
    model = make_model(family).requires_grad_(False)
    ids, options = (
        ids_of(1, 9),
        {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 2},
    )
    before, bare = logits(model), model.generate(ids, **options)
    wrapper = ResonanceWrapper(model, FusionConfig.full())
    assert torch.equal(logits(wrapper), before)
    assert torch.equal(wrapper.generate(ids, **options), bare)
    wrapper.unwrap()
    wrapper = graft(model)
    cached = wrapper.generate(ids, **options)
    assert torch.equal(cached, wrapper.generate(ids, use_cache=False, **options))
    assert not torch.equal(logits(wrapper), before)
