"""The resonance components of one layer, put together, in the fusion width. Knows no model width and no injection.

Letters: T packed rows, S shards, F fusion width, C component width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn

from braid_fusion.context import FusionContext
from braid_fusion.initialisation import linear
from braid_fusion.resonance.config import FusionConfig
from braid_fusion.resonance.stages import (
    AttentionStage,
    GateStage,
    MemoryStage,
    OscillatorStage,
    PrimeStage,
    Scene,
)

# λ at the start.
_START = 0.1


class ResonanceCore(nn.Module):
    """One state per shard in, one fused state out: fused = g · relu(y)².

    z is the shards' states brought together by one linear map, or the only shard's own. y is what the components
    make of the first C channels of z, and the others as they are: maps of the components grow with C, so that the
    parameters go into F, where they tell more. relu(y)² (So et al. 2021, arXiv 2109.08668) is neither even nor odd:
    what prime amplitudes pass by their masses is odd, and a layer that can only be odd learns less.

    The components run in the order of the grafting document: prime amplitudes
    (composed, with ``prsc``), quaternion attention, memory (``smf``), oscillators. The configuration's
    ``fusion_mode`` chains them, with z and y of C channels:

    - ``parallel``: y = Σ c(z);
    - ``sequential``: y = c_n(… c_1(z));
    - ``residual``: y = z + Σ λ_c ⊙ c, each c seeing the sum so far, with scales λ that are learned and start at 0.1:
      what untrained components say is noise to the layer's first steps, and must not drown z.

    The coherence gate g scales the outcome in all modes, rather than being one more addend: an incoherent row is to
    change the model less, not otherwise. Where it is the only component, y = z.

    Args:
        config: resolved, so that its widths are known.
        num_shards: S, 1 for a layer grafted onto one model.
    """

    def __init__(self, config: FusionConfig, num_shards: int = 1, generator: Generator | None = None) -> None:
        super().__init__()
        self.config, self.num_shards = config, num_shards
        width = self.width = cast(int, config.fusion_width)
        self.component_width = cast(int, config.component_width)
        self.combine = linear(num_shards * width, width, generator) if num_shards > 1 else None
        gates = "coherence_gate" in config.enabled_components
        make: dict[str, Callable[[], nn.Module]] = {
            "prime": lambda: PrimeStage(config, gates or "smf" in config.enabled_components, generator),
            "quaternion": lambda: AttentionStage(config, generator),
            "smf": lambda: MemoryStage(config, generator),
            "kuramoto": lambda: OscillatorStage(config, num_shards, generator),
        }
        self.stages = nn.ModuleDict(
            {name: build() for name, build in make.items() if name in config.enabled_components}
        )
        self.scales = nn.ParameterDict()
        if config.fusion_mode == "residual":
            self.scales.update(
                {name: nn.Parameter(torch.full((self.component_width,), _START)) for name in self.stages}
            )
        self.coherence_gate = GateStage(config, generator) if gates else None

    @property
    def keeps_rows(self) -> bool:
        """Whether a component looks back, and so needs caches where sequences come in pieces."""
        return not {"quaternion", "prsc", "smf"}.isdisjoint(self.config.enabled_components)

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> tuple[Tensor, dict[str, Tensor]]:
        """S tensors (T, F) to one, and what the components measured per row, (T,) each, in the graph.

        The measures are ``prime_entropy`` in bits, ``prime_coherence``, ``kuramoto_order``, ``gate_coherence`` and
        ``gate``, as far as their components are enabled; none unless the context wants metrics.

        Raises: PlanError if pieces of sequences come without caches and a component looks back.
        """
        z_TF = states_TF[0] if self.combine is None else self.combine(torch.cat(list(states_TF), dim=-1))
        C = self.component_width
        scene = Scene([state_TF[:, :C] for state_TF in states_TF], context)
        y_TC = self._chained(z_TF[:, :C], scene)
        fused_TF = torch.cat([y_TC, z_TF[:, C:]], dim=-1).relu().square()
        if self.coherence_gate is not None:
            fused_TF = fused_TF * self.coherence_gate(y_TC, scene).unsqueeze(-1).to(fused_TF.dtype)
        return fused_TF, scene.row_metrics if context.want_metrics else {}

    def _chained(self, z_TC: Tensor, scene: Scene) -> Tensor:
        y_TC, mode = z_TC, self.config.fusion_mode
        outputs_TC = []
        for name, stage in self.stages.items():
            out_TC = stage(z_TC if mode == "parallel" else y_TC, scene)
            outputs_TC.append(out_TC)
            y_TC = torch.addcmul(y_TC, self.scales[name], out_TC) if mode == "residual" else out_TC
        if mode == "parallel" and outputs_TC:
            y_TC = outputs_TC[0]
            for out_TC in outputs_TC[1:]:
                y_TC = y_TC + out_TC
        return y_TC
