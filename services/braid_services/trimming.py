"""Takes out of a model's forward what costs time with every token and changes none of its numbers.

A decode step of a small model calls some hundred and fifty modules, each through the machinery that looks for
hooks, and dropouts that do nothing. Together that is a twentieth of the time of a step. Everything still works
as before when it is wanted: hooks that somebody registers run, and dropouts drop in training mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import NewGELUActivation

# Where one kernel's rounding differs from eight kernels' by less than a check of the model can see.
_PRECISE = (torch.float32, torch.float64)


def trim(model: nn.Module) -> None:
    """Do so for all modules inside ``model``. They become instances of subclasses of their own classes."""
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    for module in model.modules():
        kind = type(module)
        if module is model or kind.__call__ is not nn.Module.__call__:
            continue
        if kind is NewGELUActivation and dtype in _PRECISE:
            module.__class__ = _FusedGelu
        else:
            module.__class__ = _trimmed(kind)


_TRIMMED: dict[type[nn.Module], type[nn.Module]] = {}


def _trimmed(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _TRIMMED:
        call = _call_dropout if issubclass(kind, nn.Dropout) else _call
        _TRIMMED[kind] = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return _TRIMMED[kind]


def _call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks:
        return nn.Module.__call__(self, *args, **kwargs)
    return self.forward(*args, **kwargs)


def _call_dropout(self: nn.Module, input: Tensor) -> Tensor:
    if self.training or self._forward_hooks or self._forward_pre_hooks:
        dropped: Tensor = nn.Module.__call__(self, input)
        return dropped
    return input


class _FusedGelu(NewGELUActivation):  # type: ignore[misc]
    """GPT-2's approximation of GELU (arXiv 1606.08415, section 2) in one kernel instead of eight."""

    __call__ = _call

    def forward(self, input: Tensor) -> Tensor:
        return functional.gelu(input, approximate="tanh")
