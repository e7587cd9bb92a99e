"""Grafted models to test with: layers that look back as sharply as can be, and wrappers that are not untrained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from braid_fusion import FusionConfig, ResonanceWrapper
from braid_fusion.context import FusionContext
from braid_fusion.resonance.layer import GraftOutput


class LookingBack(nn.Module):
    """Adds to each row a map of the decayed sum of all rows up to it, weighted by position.

    A row that is missing, doubled, of another sequence, at another position or of padding shows in every later row.
    """

    keeps_rows = True

    def __init__(self, width: int, scale: float = 0.5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.scale = scale
        self.map = nn.Parameter(torch.randn(width, width, generator=generator) / width**0.5)

    def fuse(self, hidden_TD: Tensor, context: FusionContext) -> GraftOutput:
        changed = []
        texts = hidden_TD.split(list(context.row_counts))
        for i, (rows_TD, start) in enumerate(zip(texts, context.positions, strict=True)):
            given_TD = torch.nn.functional.normalize(rows_TD, dim=-1) @ self.map
            if context.caches is not None:
                given_TD = context.caches[i].append("rows", given_TD)
            else:
                assert start == 0
            assert len(given_TD) == start + len(rows_TD)
            positions_T = torch.arange(1.0, len(given_TD) + 1)
            decay_TT = (0.8 ** (positions_T[:, None] - positions_T)).tril().to(given_TD.dtype)
            seen_TD = (decay_TT * positions_T.sin()) @ given_TD
            changed.append(rows_TD + self.scale * seen_TD[start:])
        return GraftOutput(torch.cat(changed), {})


def graft(model: Any, *positions: int, looking_back: bool = True, **config: Any) -> ResonanceWrapper:
    """A wrapper that changes the logits clearly: the full configuration with random weights, or `LookingBack`."""
    wrapper = ResonanceWrapper(
        model, FusionConfig.full(fusion_positions=positions or None, fusion_alpha=0.5, **config)
    )
    randomise(wrapper)
    if looking_back:
        for key in wrapper.fusion_layers:
            wrapper.fusion_layers[key] = LookingBack(wrapper.fusion_config.hidden_dim or 0)
    return wrapper


def randomise(wrapper: ResonanceWrapper) -> None:
    """Move all parameters of the grafted layers."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in wrapper.fusion_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
