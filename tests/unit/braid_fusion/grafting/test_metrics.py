"""Measures are of the last forward's real positions, can be turned off, and carry gradient where they are losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import VOCAB, make_model
from grafts import graft
from torch import Tensor

from braid_fusion import FusionConfig, ResonanceWrapper

MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
IDS = torch.randint(3, VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def wrapper() -> ResonanceWrapper:
    return graft(make_model("llama"), 0, 2, looking_back=False)


def test_rows_stand_at_their_positions_and_padding_is_nan(wrapper: ResonanceWrapper) -> None:
    with torch.no_grad():
        wrapper(input_ids=IDS, attention_mask=MASK, use_cache=False)
        padded = wrapper.last_row_metrics()
        means = wrapper.get_metrics()
        assert list(padded) == [0, 2]
        for name, values in padded[2].items():
            assert values.shape == (3, 7)
            assert torch.equal(values.isnan(), MASK == 0)
            assert means[2][name] == pytest.approx(float(values.nanmean()), rel=1e-5)
        wrapper(input_ids=IDS[1:2], use_cache=False)
        alone = wrapper.last_row_metrics()
        torch.testing.assert_close(alone[2]["gate"][0], padded[2]["gate"][1])
        wrapper(input_ids=IDS[2:, :4], use_cache=False)
        torch.testing.assert_close(wrapper.last_row_metrics()[2]["gate"][0], padded[2]["gate"][2, :4])


def test_steps_measure_what_the_whole_forward_does(wrapper: ResonanceWrapper) -> None:
    with torch.no_grad():
        wrapper(input_ids=IDS)
        whole = wrapper.last_row_metrics()
        cache = wrapper(input_ids=IDS[:, :5]).past_key_values
        wrapper(input_ids=IDS[:, 5:], past_key_values=cache)
    for name, values in wrapper.last_row_metrics()[2].items():
        torch.testing.assert_close(values, whole[2][name][:, 5:], atol=1e-4, rtol=1e-4)


def test_losses_carry_gradient(wrapper: ResonanceWrapper) -> None:
    wrapper.train()
    assert wrapper.auxiliary_losses() == {}
    wrapper(input_ids=IDS, attention_mask=MASK)
    losses = wrapper.auxiliary_losses()
    assert set(losses) == {"coherence", "kuramoto"}
    means = wrapper.get_average_metrics()
    assert float(losses["coherence"].detach()) == pytest.approx(1 - means["gate_coherence"], abs=1e-6)
    assert float(losses["kuramoto"].detach()) == pytest.approx(1 - means["kuramoto_order"], abs=1e-6)
    sum(losses.values()).backward()
    for layer in wrapper.fusion_layers.values():
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        assert any(float(gradient.abs().max()) > 0 for gradient in gradients)


def test_layers_without_a_gate_lend_the_coherence_of_their_primes() -> None:
    wrapper = ResonanceWrapper(make_model("llama"), FusionConfig.minimal())
    wrapper(input_ids=IDS)
    assert set(wrapper.auxiliary_losses()) == {"coherence"}
    coherence = float(wrapper.auxiliary_losses()["coherence"].detach())
    assert coherence == pytest.approx(1 - wrapper.get_average_metrics()["prime_coherence"], abs=1e-6)


def test_measuring_can_be_turned_off(wrapper: ResonanceWrapper) -> None:
    with torch.no_grad():
        on = wrapper(input_ids=IDS).logits
        wrapper.collect_metrics = False
        off = wrapper(input_ids=IDS).logits
    assert torch.equal(on, off)
    assert wrapper.get_metrics() == {}
    assert wrapper.get_average_metrics() == {}
    assert wrapper.last_row_metrics() == {}
    assert wrapper.auxiliary_losses() == {}


def test_a_forward_that_failed_leaves_the_measures_of_the_one_before(wrapper: ResonanceWrapper) -> None:
    with torch.no_grad():
        wrapper(input_ids=IDS)
        before: Any = wrapper.get_metrics()
        with pytest.raises(IndexError):
            wrapper(input_ids=IDS + 1000)
    assert wrapper.get_metrics() == before


def test_what_is_kept_is_small(wrapper: ResonanceWrapper) -> None:
    with torch.no_grad():
        wrapper(input_ids=IDS)
    last = wrapper._grafts.last
    assert last is not None
    held = [value for value in vars(last).values() if isinstance(value, Tensor)]
    held += [values for metrics in last.row_metrics.values() for values in metrics.values()]
    assert max(value.numel() for value in held) <= IDS.numel()
    assert (last.cache, last.rows, last.mark, last.sums_N) == (None, None, None, {})
