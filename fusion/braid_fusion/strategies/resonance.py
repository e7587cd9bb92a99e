"""The components of resonance layers as a strategy: prime amplitudes, quaternion attention, oscillators, gate.

The same core as in a grafted layer, between the point's maps in and out.

Letters: T packed rows, S shards, F fusion width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator, Tensor

from braid_fusion.context import FusionContext
from braid_fusion.errors import GraftConfigError, PlanError
from braid_fusion.resonance.config import (
    DEFAULT_COMPONENTS,
    CoherenceGateConfig,
    FusionConfig,
    KuramotoConfig,
    PrimeConfig,
    QuaternionConfig,
)
from braid_fusion.resonance.core import ResonanceCore
from braid_fusion.strategies.base import Fused, FusionStrategy
from braid_fusion.strategies.registry import register_strategy

_MEANS = ("prime_entropy", "prime_coherence", "kuramoto_order", "gate_coherence")
_OPTION_OF = {"enabled_components": "components", "fusion_mode": "mode"}


@register_strategy("resonance")
class ResonanceFusion(FusionStrategy):
    """One fused state for all receivers, out of the shards' superposed amplitudes and their coupled oscillators.

    It works with one shard as well, as a layer grafted onto it does. Rows are kept per sequence where a component
    looks back (``quaternion``, ``prsc``, ``smf``). The options are those of `FusionConfig` and its parts.
    """

    def __init__(
        self,
        num_models: int,
        hidden_dim: int,
        components: Sequence[str] | None = None,
        mode: str = "residual",
        num_primes: int = 25,
        use_quaternion: bool = True,
        num_heads: int | None = None,
        num_oscillators: int = 16,
        coupling: float = 1.5,
        num_steps: int = 5,
        threshold: float = 0.7,
        soft_gate: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        try:
            config = FusionConfig(
                fusion_width=hidden_dim,
                component_width=hidden_dim,
                fusion_mode=mode,
                enabled_components=DEFAULT_COMPONENTS if components is None else components,
                prime=PrimeConfig(num_primes, use_quaternion),
                quaternion=QuaternionConfig(num_heads),
                kuramoto=KuramotoConfig(num_oscillators, coupling, num_steps),
                coherence_gate=CoherenceGateConfig(threshold, soft_gate),
            ).resolve(hidden_dim)
        except GraftConfigError as error:
            key, _, rest = str(error).partition(":")
            name = _OPTION_OF.get(key, key.rpartition(".")[-1])
            raise PlanError(f"resonance: {name}:{rest}") from error
        self.core = ResonanceCore(config, num_models, generator)

    @property
    def keeps_rows(self) -> bool:  # type: ignore[override]
        """Whether a component looks back."""
        return self.core.keeps_rows

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
        """Returns one (T, F) for all receivers; the means of the components' measures, and these row by row.

        Raises: PlanError if pieces of sequences come without caches and a component looks back.
        """
        fused_TF, row_metrics = self.core.fuse(states_TF, context)
        means = {name: row_metrics[name].mean() for name in _MEANS if name in row_metrics}
        return Fused(fused_TF, None, means, row_metrics)
