"""The layer as a whole: exact untrained, shapes, errors."""

from __future__ import annotations

import pytest
import torch

from braid_fusion import FusionConfig, FusionContext, ResonanceFusionLayer
from braid_fusion.errors import FusionShapeError, GraftConfigError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("preset", ["minimal", "standard", "full"])
def test_an_untrained_layer_returns_its_input(preset, dtype) -> None:
    layer = ResonanceFusionLayer(24, getattr(FusionConfig, preset)())
    hidden_TD = (torch.randn(7, 24, generator=torch.Generator().manual_seed(1)) * 50 / 3).to(dtype)
    changed = layer.fuse(hidden_TD, FusionContext.whole([3, 4])).hidden_TD
    assert changed.dtype == dtype and torch.equal(changed, hidden_TD)


def test_metrics_are_scalars() -> None:
    layer = ResonanceFusionLayer(hidden_dim=24, config=FusionConfig.standard())
    output, metrics = layer(torch.randn(2, 5, 24), return_metrics=True)
    assert output.shape == (2, 5, 24)
    assert {"prime_entropy", "gate_coherence", "kuramoto_order"} <= metrics.keys()
    assert all(value.shape == () for value in metrics.values())
    assert isinstance(layer(torch.randn(2, 5, 24)), torch.Tensor)


def test_widths_that_do_not_match_are_named() -> None:
    with pytest.raises(GraftConfigError, match="hidden_dim: got 32, expected the model's width 24"):
        ResonanceFusionLayer(24, FusionConfig(hidden_dim=32))
    layer = ResonanceFusionLayer(24, FusionConfig.standard())
    with pytest.raises(FusionShapeError, match=r"\(2, 5, 23\), expected \(B, T, 24\)"):
        layer(torch.randn(2, 5, 23))
