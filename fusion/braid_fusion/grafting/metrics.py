"""What the grafted layers measured in the last forward, read only when asked for. Runs nothing.

Letters: B sequences, T positions, N packed rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from braid_fusion.grafting.forward_pass import ForwardPass

_LOSSES = {"coherence": ("gate_coherence", "prime_coherence"), "kuramoto": ("kuramoto_order",)}


def layer_means(last: ForwardPass | None) -> dict[int, dict[str, float]]:
    """Each layer's measures, averaged over all real positions."""
    if last is None:
        return {}
    return {
        layer_idx: {name: float(rows_N.detach().mean()) for name, rows_N in metrics.items()}
        for layer_idx, metrics in sorted(last.row_metrics.items())
    }


def average(by_layer: dict[int, dict[str, float]]) -> dict[str, float]:
    """Each measure, averaged over the layers that have it."""
    names = {name: None for metrics in by_layer.values() for name in metrics}
    values = {name: [metrics[name] for metrics in by_layer.values() if name in metrics] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def by_position(last: ForwardPass | None) -> dict[int, dict[str, Tensor]]:
    """Each layer's measures per position, (B, T), NaN at padding, without gradient."""
    if last is None:
        return {}
    return {
        layer_idx: {name: last.spread(rows_N.detach()) for name, rows_N in metrics.items()}
        for layer_idx, metrics in sorted(last.row_metrics.items())
    }


def losses(last: ForwardPass | None) -> dict[str, Tensor]:
    """``coherence``: 1 − mean coherence (the gate's, or the primes' in layers without a gate), ``kuramoto``: 1 − mean
    order parameter; scalars in the graph, averaged over the layers that have them, absent where none has."""
    found: dict[str, Tensor] = {}
    for loss, names in _LOSSES.items():
        means = []
        for metrics in () if last is None else last.row_metrics.values():
            name = next((name for name in names if name in metrics), None)
            if name is not None:
                means.append(metrics[name].mean())
        if means:
            found[loss] = 1 - torch.stack([mean.to(means[0].device) for mean in means]).mean()
    return found
