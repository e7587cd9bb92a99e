"""The resonance components of one layer, put together, in the fusion width. Knows no model width and no injection.

Letters: T packed rows, S shards, F fusion width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

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
    """One state per shard in, one fused state out: fused = g · silu(G y) ⊙ y.

    z is the shards' states brought together by one linear map, or the only shard's own; y what the components make
    of it, in the order of the grafting document (`000_6acc7a45b61f3d76.txt`): prime amplitudes (composed, with
    ``prsc``), quaternion attention, memory (``smf``), oscillators. The configuration's ``fusion_mode`` chains them:

    - ``parallel``: y = Σ c(z);
    - ``sequential``: y = c_n(… c_1(z));
    - ``residual``: y = z + Σ λ_c ⊙ c, each c seeing the sum so far, with scales λ that are learned and start at 0.1:
      what untrained components say is noise to the layer's first steps, and must not drown z.

    The coherence gate g scales the outcome in all modes, rather than being one more addend: an incoherent row is to
    change the model less, not otherwise. Where it is the only component, y = z.

    Args:
        config: resolved, so that ``fusion_width`` is known.
        num_shards: S, 1 for a layer grafted onto one model.
    """

    def __init__(self, config: FusionConfig, num_shards: int = 1, generator: Generator | None = None) -> None:
        super().__init__()
        self.config, self.num_shards = config, num_shards
        width = self.width = cast(int, config.fusion_width)
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
            self.scales.update({name: nn.Parameter(torch.full((width,), _START)) for name in self.stages})
        self.path = linear(width, width, generator)
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
        scene = Scene(states_TF, context)
        y_TF = self._chained(z_TF, scene)
        fused_TF = functional.silu(self.path(y_TF)) * y_TF
        if self.coherence_gate is not None:
            fused_TF = self.coherence_gate(fused_TF, scene)
        return fused_TF, scene.row_metrics if context.want_metrics else {}

    def _chained(self, z_TF: Tensor, scene: Scene) -> Tensor:
        y_TF, mode = z_TF, self.config.fusion_mode
        outputs_TF = []
        for name, stage in self.stages.items():
            out_TF = stage(z_TF if mode == "parallel" else y_TF, scene)
            outputs_TF.append(out_TF)
            y_TF = torch.addcmul(y_TF, self.scales[name], out_TF) if mode == "residual" else out_TF
        if mode == "parallel" and outputs_TF:
            y_TF = outputs_TF[0]
            for out_TF in outputs_TF[1:]:
                y_TF = y_TF + out_TF
        return y_TF
