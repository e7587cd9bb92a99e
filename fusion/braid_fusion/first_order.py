"""Autograd functions that are differentiated once: they say so, where half of a second derivative would come out."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

GradientsT = TypeVar("GradientsT")


def first_order_only(backward: Callable[..., GradientsT]) -> Callable[..., GradientsT]:
    """For the ``backward`` of a `torch.autograd.Function` that computes past autograd.

    Called under ``create_graph=True`` it raises RuntimeError. Torch's `once_differentiable` raises later, only on the
    way through the incoming gradients: where these are constants, or where `torch.autograd.grad` is asked for
    something else's second derivative too, this function's is silently taken for zero.
    """
    name = backward.__qualname__.rpartition(".")[0].rpartition(".")[2]

    @wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> GradientsT:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} has no second derivative: got a backward with create_graph=True, expected one without"
            )
        return backward(ctx, *gradients)

    return checked
