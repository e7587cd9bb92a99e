"""How linear maps start. Draws come from a generator that the caller owns, never from the global one."""

from __future__ import annotations

import torch
from torch import Generator, nn


def linear(
    in_features: int,
    out_features: int,
    generator: Generator | None,
    *,
    bias: bool = True,
    gain: float = 1.0,
) -> nn.Linear:
    """A map that keeps unit variance times ``gain``²: weights N(0, gain² / in_features), bias zero."""
    module = _uninitialised(in_features, out_features, bias=bias)
    nn.init.normal_(module.weight, std=gain * in_features**-0.5, generator=generator)
    return module


def zero_linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A map whose output is exactly zero until it is trained."""
    module = _uninitialised(in_features, out_features, bias=bias)
    nn.init.zeros_(module.weight)
    return module


def matching_linear(in_features: int, out_features: int, generator: Generator | None) -> nn.Linear:
    """The identity where the widths agree; else a map with orthonormal rows or columns. Bias zero."""
    module = _uninitialised(in_features, out_features, bias=True)
    if in_features == out_features:
        nn.init.eye_(module.weight)
    else:
        nn.init.orthogonal_(module.weight, generator=generator)
    return module


def _uninitialised(in_features: int, out_features: int, *, bias: bool) -> nn.Linear:
    # nn.Linear's own constructor would draw from the global generator.
    with torch.device("meta"):
        module = nn.Linear(in_features, out_features, bias=bias)
    module = module.to_empty(device="cpu")
    if bias:
        nn.init.zeros_(module.bias)
    return module
