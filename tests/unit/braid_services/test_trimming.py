"""A trimmed model computes what it did, and still does what is asked of it from outside."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from models import tiny_llama
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from braid_services.trimming import trim

# Two ways to round the same float32 numbers.
TOLERANCE = 1e-5

IDS = torch.arange(24).reshape(2, 12)


def tiny_gpt2(**options: Any) -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=64, n_positions=32, **options)
        return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("make", [tiny_gpt2, lambda: tiny_llama(1)])
def test_logits_are_the_same(make: Any) -> None:
    model = make()
    before = model(IDS).logits
    trim(model)
    assert torch.allclose(model(IDS).logits, before, atol=TOLERANCE)


def test_half_precision_is_left_to_the_bit() -> None:
    model = tiny_gpt2().bfloat16()
    before = model(IDS).logits
    trim(model)
    assert torch.equal(model(IDS).logits, before)


def test_a_hook_registered_later_still_runs() -> None:
    model = tiny_gpt2()
    trim(model)
    seen: list[torch.Size] = []
    model.transformer.h[1].mlp.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert len(model(IDS, output_hidden_states=True).hidden_states) == 3
    assert seen == [(2, 12, 32)]


def test_dropouts_drop_in_training_mode() -> None:
    model = tiny_gpt2(resid_pdrop=0.5)
    trim(model)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


def test_modules_stay_what_they_were() -> None:
    model = tiny_gpt2()
    kinds = [type(module) for module in model.modules()]
    trim(model)
    trim(model)
    assert all(isinstance(module, kind) for module, kind in zip(model.modules(), kinds, strict=True))
    assert type(model) is GPT2LMHeadModel
    copy = deepcopy(model)
    assert torch.equal(copy(IDS).logits, model(IDS).logits)
    assert isinstance(copy.transformer.h[0].mlp.dropout, nn.Dropout)


def test_modules_without_parameters_can_be_trimmed() -> None:
    trim(nn.ModuleDict({"points": nn.ModuleDict()}))
