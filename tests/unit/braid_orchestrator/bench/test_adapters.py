"""What grafted layers are compared with is nothing until it is trained, about as large as asked, and learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import tiny_llama
from torch import nn

from braid_orchestrator.bench.adapters import WithMlpAdapters, add_lora, num_trainable

IDS = torch.tensor([[5, 17, 99, 3, 42, 8]])


def lora(model: Any, num_parameters: int) -> nn.Module:
    return add_lora(model, num_parameters, seed=0)


def mlp(model: Any, num_parameters: int) -> nn.Module:
    return WithMlpAdapters(model, (0, 2), num_parameters, seed=0)


@pytest.mark.parametrize("extend", [lora, mlp])
def test_it_is_nothing_until_it_is_trained(extend: Callable[[Any, int], nn.Module]) -> None:
    bare = tiny_llama(1)(input_ids=IDS).logits
    assert torch.equal(extend(tiny_llama(1), 4000)(input_ids=IDS).logits, bare)


@pytest.mark.parametrize("extend", [lora, mlp])
@pytest.mark.parametrize("num_parameters", [4000, 20_000])
def test_it_is_as_large_as_asked_for(extend: Callable[[Any, int], nn.Module], num_parameters: int) -> None:
    assert num_trainable(extend(tiny_llama(1), num_parameters)) == pytest.approx(num_parameters, rel=0.25)


@pytest.mark.parametrize("extend", [lora, mlp])
def test_training_changes_it_and_not_the_model(extend: Callable[[Any, int], nn.Module]) -> None:
    model = tiny_llama(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    extended = extend(model, 4000)
    optimiser = torch.optim.AdamW([p for p in extended.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        logits = extended(input_ids=IDS[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits[0], IDS[0, 1:])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    after = extended.state_dict()
    kept = {name: next(v for n, v in after.items() if _same(n, name)) for name in before}
    assert all(torch.equal(kept[name], before[name]) for name in before)


def _same(name: str, original: str) -> bool:
    """peft and the wrapper put names of their own around the model's."""
    return name.replace("base_layer.", "").endswith(original)
