"""The exponent of a generation is that of the map it says it is, and measuring it changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import make_model
from grafts import graft
from models import byte_tokenizer, tiny_llama
from torch import Tensor
from transformers import DynamicCache

from braid_fusion import GenerationConfig, ResonanceGenerator
from braid_fusion.errors import StabilityError
from braid_fusion.grafting.perturbation import PerturbedTwin

PROMPT = "In the other garden there"
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "seed": 3, "eos_token_ids": ()}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("grafted", [False, True])
def test_measuring_changes_no_token_and_no_figure(family: str, grafted: bool) -> None:
    model = make_model(family, vocab_size=262)
    model = graft(model) if grafted else model
    generator = ResonanceGenerator(model, byte_tokenizer(), GenerationConfig(**OPTIONS))
    plain, measured = generator.generate(PROMPT), generator.generate(PROMPT, measure_exponent=True)
    assert plain.token_ids == measured.token_ids
    assert [t.entropy for t in plain.tokens] == pytest.approx([t.entropy for t in measured.tokens], abs=1e-5)
    assert plain.exponent is plain.tokens[-1].exponent is measured.tokens[0].exponent is None
    assert measured.exponent is not None and math.isfinite(measured.exponent)
    assert measured.exponent == measured.tokens[-1].exponent
    assert measured.tokens[5].exponent != measured.tokens[-1].exponent
    assert generator.generate(PROMPT, measure_exponent=True).exponent == measured.exponent


def test_the_exponent_is_that_of_the_maps_derivative() -> None:
    """By differentiation, with keys and values held: no twin, no distance."""
    model, tokenizer = tiny_llama(1), byte_tokenizer()
    result = ResonanceGenerator(
        model, tokenizer, GenerationConfig(measure_exponent=True, **OPTIONS)
    ).generate(PROMPT)
    table_VD = model.get_input_embeddings().weight.detach()
    prompt = tokenizer(PROMPT)["input_ids"]
    direction_D = torch.randn(
        table_VD.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    direction_D = (direction_D / direction_D.norm()).float()
    logs = []
    for count, token_id in enumerate(result.token_ids[:-1]):
        text = torch.tensor([[*prompt, *result.token_ids[:count]]])

        def expectation(x_D: Tensor, text: Tensor = text) -> Tensor:
            cache = DynamicCache(config=model.config)
            with torch.no_grad():
                model(input_ids=text, past_key_values=cache)
            logits_V = model(inputs_embeds=x_D[None, None], past_key_values=cache).logits[0, -1]
            return torch.softmax(logits_V, -1) @ table_VD

        jacobian_DD = torch.autograd.functional.jacobian(expectation, table_VD[token_id])
        moved_D = jacobian_DD @ direction_D
        logs.append(math.log(float(moved_D.norm())))
        direction_D = moved_D / moved_D.norm()
        assert result.tokens[count + 1].exponent == pytest.approx(sum(logs) / len(logs), abs=0.02)
    assert abs(sum(logs) / len(logs)) > 0.1


def test_a_cache_that_cannot_be_put_back_is_refused() -> None:
    from transformers import StaticCache

    model = tiny_llama(1)
    cache = StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]), past_key_values=cache)
        with pytest.raises(StabilityError, match="measure_exponent: got a cache of StaticCache"):
            PerturbedTwin(model, torch.Generator()).step(4, cache)
