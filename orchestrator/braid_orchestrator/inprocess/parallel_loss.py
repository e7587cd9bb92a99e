"""A loss over several parts of a batch, each worked on by a thread of its own, forward and backward.

On small models, threads that each do a part are faster than threads that share every product, and don't wait
for each other where the machine is busy with something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

PartT = TypeVar("PartT")
Losses = Mapping[str, Tensor]


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients have been computed elsewhere; backward only hands them over."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(outer[0] * gradient for gradient in ctx.gradients))


def loss_in_threads(
    pool: ThreadPoolExecutor,
    loss_of: Callable[[PartT], Losses],
    parts: Sequence[PartT],
    parameters: Sequence[nn.Parameter],
) -> dict[str, Tensor]:
    """The mean over parts of equal size of what ``loss_of`` gives, its "loss" differentiable in ``parameters``.

    Raises: what ``loss_of`` raises.
    """
    pending = [pool.submit(_losses_and_gradients, loss_of, part, parameters) for part in parts]
    done = [future.result() for future in pending]
    losses = {name: torch.stack([part[name] for part, _ in done]).mean() for name in done[0][0]}
    gradients = [
        torch.stack(shares).mean(0) for shares in zip(*(gradients for _, gradients in done), strict=True)
    ]
    losses["loss"] = cast(
        Tensor,
        _KnownGradients.apply(losses["loss"], gradients, *parameters),  # type: ignore[no-untyped-call]
    )
    return losses


def _losses_and_gradients(
    loss_of: Callable[[PartT], Losses], part: PartT, parameters: Sequence[nn.Parameter]
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    losses = loss_of(part)
    gradients = torch.autograd.grad(losses["loss"], parameters, allow_unused=True, materialize_grads=True)
    return {name: value.detach() for name, value in losses.items()}, gradients
