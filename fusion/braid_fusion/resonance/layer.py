"""A resonance layer on the states of one model: into the fusion width, through the core, back, added.

Knows no model: who calls it decides which states it gets.

Letters: B sequences, T packed rows or positions, D model width, F fusion width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid_fusion.context import FusionContext
from braid_fusion.errors import FusionShapeError
from braid_fusion.initialisation import linear, zero_linear
from braid_fusion.resonance.config import FusionConfig
from braid_fusion.resonance.core import ResonanceCore


class GraftOutput(NamedTuple):
    """The changed states (T, D), in the dtype they came in, and measures per row, (T,) each, in the graph:
    ``prime_entropy`` in bits, ``prime_coherence``, ``kuramoto_order``, ``gate_coherence`` and ``gate``, as far as
    their components are enabled; empty unless wanted."""

    hidden_TD: Tensor  # noqa: N815 - shape letters
    row_metrics: dict[str, Tensor]


class ResonanceFusionLayer(nn.Module):
    """h ← h + α · out(core(in(norm(h)))), exactly h until it is trained, because ``out`` starts at zero.

    ``config`` None: `FusionConfig.full()`. α starts at ``fusion_alpha``. States are normalised without parameters, so
    that layers of any scale look alike. All draws come from ``generator``, or from one seeded by the configuration.
    Parameters are float32 on the CPU.

    Raises: GraftConfigError if the configuration is for another width.
    """

    def __init__(
        self, hidden_dim: int, config: FusionConfig | None = None, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config = (config or FusionConfig.full()).resolve(hidden_dim)
        self.hidden_dim = hidden_dim
        if generator is None:
            generator = torch.Generator().manual_seed(config.seed)
        self.core = ResonanceCore(config, 1, generator)
        self.enter = linear(hidden_dim, self.core.width, generator)
        self.out = zero_linear(self.core.width, hidden_dim, bias=False)
        alpha = torch.tensor(float(config.fusion_alpha))
        self.alpha: Tensor
        if config.learnable_alpha:
            self.alpha = nn.Parameter(alpha)
        else:
            self.register_buffer("alpha", alpha)

    @property
    def keeps_rows(self) -> bool:
        """Whether it looks back, and so needs caches where sequences come in pieces."""
        return self.core.keeps_rows

    def fuse(self, hidden_TD: Tensor, context: FusionContext) -> GraftOutput:
        """The packed rows of one call. Raises: FusionShapeError if they are not what the context says; PlanError if
        pieces of sequences come without caches and a component looks back."""
        if hidden_TD.shape != (context.num_rows, self.hidden_dim) or not hidden_TD.is_floating_point():
            raise FusionShapeError(
                f"resonance layer: got {hidden_TD.dtype} {tuple(hidden_TD.shape)}, "
                f"expected floats {(context.num_rows, self.hidden_dim)}"
            )
        state_TD = hidden_TD.to(self.enter.weight.dtype)
        entered_TF = self.enter(functional.layer_norm(state_TD, (self.hidden_dim,)))
        fused_TF, row_metrics = self.core.fuse([entered_TF], context)
        update_TD = self.out(fused_TF)
        # In the wider of the two: neither side's precision is lost while the other is added.
        dtype = torch.promote_types(hidden_TD.dtype, update_TD.dtype)
        changed_TD = torch.addcmul(hidden_TD.to(dtype), self.alpha.to(dtype), update_TD.to(dtype))
        return GraftOutput(changed_TD.to(hidden_TD.dtype), row_metrics)

    @overload
    def forward(self, hidden_BTD: Tensor, return_metrics: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(
        self, hidden_BTD: Tensor, return_metrics: Literal[True]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def forward(
        self, hidden_BTD: Tensor, return_metrics: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Whole sequences without padding, (B, T, D) or one as (T, D).

        Returns: the changed states; with ``return_metrics`` also the means of the row metrics, scalar tensors.
        Raises: FusionShapeError for another shape or width.
        """
        if hidden_BTD.dim() not in (2, 3) or hidden_BTD.shape[-1] != self.hidden_dim:
            raise FusionShapeError(
                f"resonance layer: got {tuple(hidden_BTD.shape)}, expected (B, T, {self.hidden_dim})"
            )
        batch, length = (1, *hidden_BTD.shape[:1]) if hidden_BTD.dim() == 2 else hidden_BTD.shape[:2]
        context = FusionContext.whole([length] * batch, want_metrics=return_metrics)
        packed = self.fuse(hidden_BTD.reshape(-1, self.hidden_dim), context)
        output_BTD = packed.hidden_TD.view(hidden_BTD.shape)
        if not return_metrics:
            return output_BTD
        return output_BTD, {name: rows_T.mean() for name, rows_T in packed.row_metrics.items()}
