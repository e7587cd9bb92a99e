"""Next-token loss without keeping logits: head and cross-entropy a few rows at a time, so they stay in cache.

Shapes: T rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from braid_fusion.first_order import first_order_only

ROWS_AT_ONCE = 256


class _LinearCrossEntropy(torch.autograd.Function):
    """Both gradients are known as soon as a row's logits are, so backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
        hidden_gradient_TD = torch.empty_like(hidden_TD)
        weight_gradient_VD = torch.zeros_like(weight_VD)
        total = torch.zeros((), dtype=torch.float64, device=hidden_TD.device)
        num_rows = hidden_TD.shape[0]
        for start in range(0, num_rows, ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            targets = targets_T[rows, None]
            log_probs = torch.mm(hidden_TD[rows], weight_VD.T).log_softmax(dim=-1)
            total -= log_probs.gather(1, targets).sum()
            gradient = log_probs.exp_()
            gradient.scatter_add_(1, targets, gradient.new_full(targets.shape, -1.0))
            torch.mm(gradient, weight_VD, out=hidden_gradient_TD[rows])
            weight_gradient_VD.addmm_(gradient.T, hidden_TD[rows])
        ctx.save_for_backward(hidden_gradient_TD.div_(num_rows), weight_gradient_VD.div_(num_rows))
        return (total / num_rows).to(hidden_TD.dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_gradient_TD, weight_gradient_VD = ctx.saved_tensors
        return hidden_gradient_TD * gradients[0], weight_gradient_VD * gradients[0], None


def linear_cross_entropy(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    """Mean cross-entropy in nats of ``hidden @ weightᵀ`` against the targets; equals the plain one.

    Args:
        hidden_TD: the head's input.
        weight_VD: the head's weight; the input is brought to its dtype.
        targets_T: int64 token ids.

    Returns: a scalar, computed in the weight's dtype even under autocast. Second derivatives don't exist:
    ``create_graph=True`` is refused with RuntimeError.
    """
    with torch.autocast(hidden_TD.device.type, enabled=False):
        hidden_TD = hidden_TD.to(weight_VD.dtype)
        return cast(Tensor, _LinearCrossEntropy.apply(hidden_TD, weight_VD, targets_T))  # type: ignore[no-untyped-call]
