"""The resonance components of one layer, put together, in the fusion width. Knows no model width and no injection.

Letters: T packed rows, S shards, F fusion width, P primes, Q parts of an amplitude.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid_fusion.context import FusionContext
from braid_fusion.initialisation import linear
from braid_fusion.resonance.config import FusionConfig


class ResonanceCore(nn.Module):
    """One state per shard in, one fused state out.

    Args:
        config: resolved, so that ``fusion_width`` is known.
        num_shards: S, 1 for a layer grafted onto one model.
    """

    def __init__(self, config: FusionConfig, num_shards: int = 1, generator: Generator | None = None) -> None:
        super().__init__()
        self.config, self.num_shards = config, num_shards
        width = self.width = int(config.fusion_width or 0)
        if num_shards > 1:
            self.combine = linear(num_shards * width, width, generator)
        self.amplitudes = linear(width, config.prime.num_primes, generator)
        self.back = linear(config.prime.num_primes, width, generator)
        self.gate = linear(width, width, generator)

    @property
    def keeps_rows(self) -> bool:
        """Whether a component looks back, and so needs caches where sequences come in pieces."""
        return any(name in self.config.enabled_components for name in ("quaternion", "prsc", "smf"))

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> tuple[Tensor, dict[str, Tensor]]:
        """S tensors (T, F) to one, and per row (T,) what the components measured, in the graph; nothing unless the
        context wants metrics."""
        z_TF = states_TF[0] if self.num_shards == 1 else self.combine(torch.cat(list(states_TF), -1))
        amplitudes_TP = self.amplitudes(z_TF)
        z_TF = z_TF + self.back(functional.normalize(amplitudes_TP, dim=-1))
        fused_TF = functional.silu(self.gate(z_TF)) * z_TF
        if not context.want_metrics:
            return fused_TF, {}
        mass_TP = functional.normalize(amplitudes_TP, dim=-1).square()
        entropy_T = torch.special.entr(mass_TP).sum(-1) / torch.log(torch.tensor(2.0))
        coherence_T = 1 - entropy_T / torch.log2(torch.tensor(float(mass_TP.shape[-1])))
        names = self.config.enabled_components
        metrics = {"prime_entropy": entropy_T, "prime_coherence": coherence_T}
        if "kuramoto" in names:
            metrics["kuramoto_order"] = coherence_T
        if "coherence_gate" in names:
            metrics |= {"gate_coherence": coherence_T, "gate": coherence_T.sigmoid()}
        return fused_TF, metrics
