"""How a fused state enters a shard: added to the shard's own, or in its place.

Letters: T packed rows, D the shard's width, F fusion width.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from braid_fusion.errors import PlanError
from braid_fusion.initialisation import matching_linear, zero_linear

INJECTIONS = ("residual", "replace")


class ResidualInjection(nn.Module):
    """h + gate · out(fused), exactly h at the start.

    The output map starts at zero. The gate, 2σ(w·x + b) per row from the receiver's own state in the fusion
    width, starts at one, so that the first gradient reaches the output map undamped and the second all else.
    """

    def __init__(self, fusion_width: int, width: int) -> None:
        super().__init__()
        self.out = zero_linear(fusion_width, width)
        self.gate = zero_linear(fusion_width, 1)

    def forward(self, hidden_TD: Tensor, fused_TF: Tensor, own_TF: Tensor) -> tuple[Tensor, Tensor]:
        """The injected states (T, D), in the dtype of ``hidden_TD``, and the gate (T, 1)."""
        gate_T1 = self.gate(own_TF).sigmoid() * 2.0
        update_TD = self.out(fused_TF)
        # In the wider of the two: neither side's precision is lost while the other is added.
        dtype = torch.promote_types(hidden_TD.dtype, update_TD.dtype)
        injected_TD = torch.addcmul(hidden_TD.to(dtype), gate_T1.to(dtype), update_TD.to(dtype))
        return injected_TD.to(hidden_TD.dtype), gate_T1


class ReplaceInjection(nn.Module):
    """out(fused) in the place of h; the identity at the start where the widths agree.

    Only sensible between models of the same initialisation.
    """

    def __init__(self, fusion_width: int, width: int, generator: Generator | None) -> None:
        super().__init__()
        self.out = matching_linear(fusion_width, width, generator)

    def forward(self, hidden_TD: Tensor, fused_TF: Tensor, own_TF: Tensor) -> tuple[Tensor, None]:
        """The states (T, D) to go on with, in the dtype of ``hidden_TD``; there is no gate."""
        return self.out(fused_TF).to(hidden_TD.dtype), None


def make_injection(kind: str, fusion_width: int, width: int, generator: Generator | None) -> nn.Module:
    """Raises: PlanError for an unknown kind."""
    if kind == "residual":
        return ResidualInjection(fusion_width, width)
    if kind == "replace":
        return ReplaceInjection(fusion_width, width, generator)
    raise PlanError(f"injection: got {kind!r}, expected one of {', '.join(INJECTIONS)}")
