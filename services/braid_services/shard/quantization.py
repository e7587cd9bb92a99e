"""Weights held in 8 or 4 bits: which kinds there are, what they need, and how a layer of int8 weights computes.

``int8`` is bitsandbytes' vector-wise int8 (arXiv 2208.07339) for the weights alone: one scale per output,
activations stay as they are. The mixed decomposition of that paper is left out on purpose: it picks its outlier
columns over all packed rows, so that a session's numbers would depend on its batch. ``nf4`` is the 4-bit
NormalFloat of QLoRA (arXiv 2305.14314) in blocks of 64; on the CPU the layers that compute with it are our own, as
bitsandbytes' are wrong there for some shapes. Embedding, head and norms keep the shard's dtype.

Letters: N outputs, K inputs of a linear layer.
"""

from __future__ import annotations

import copy
import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitsAndBytesConfig

from braid_rpc.errors import ConfigError
from braid_services.shard.config import ALIASES

QUANTIZATIONS = ("int8", "nf4")
PACKAGES = ("bitsandbytes", "accelerate")
_DEVICES = ("cpu", "cuda", "xpu")


def canonical(quantization: str | None) -> str:
    """``int8`` or ``nf4`` for it or its alias; empty for none. Raises: ConfigError."""
    name = ALIASES.get(quantization or "", quantization or "")
    if name and name not in QUANTIZATIONS:
        known = ", ".join((*QUANTIZATIONS, *ALIASES))
        raise ConfigError(f"quantization: got {quantization!r}, expected None or one of {known}")
    return name


def check_possible(quantization: str, device: torch.device, where: str) -> None:
    """Raises: ConfigError if a package is missing, or if the device cannot do it."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{where}: quantization: got {quantization!r}, which needs {' and '.join(missing)}, expected it "
            "installed: pip install '.[quantization]'"
        )
    if device.type not in _DEVICES:
        raise ConfigError(
            f"{where}: quantization: got {quantization!r} on device {device.type!r}, expected one of "
            f"{', '.join(_DEVICES)}"
        )


def recipe(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers needs to know to load a model so; layers compute in ``dtype``."""
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def stored_quantization(model: Any) -> str:
    """How a model that was loaded as it is stored is quantized; empty if it is not."""
    stored = getattr(model.config, "quantization_config", None)
    if stored is None:
        return ""
    values = stored if isinstance(stored, dict) else stored.to_dict()
    if values.get("load_in_8bit"):
        return "int8"
    if values.get("load_in_4bit"):
        return str(values.get("bnb_4bit_quant_type", "4bit"))
    method = values.get("quant_method", "quantized")
    return str(getattr(method, "value", method))


def quantize(model: Any, quantization: str, where: str) -> Any:
    """A quantized copy of a model in memory, on its device and in its dtype; the given one stays as it is.

    Raises: ConfigError.
    """
    weight = model.get_input_embeddings().weight
    check_possible(quantization, weight.device, where)
    quantized = type(model).from_pretrained(
        None,
        config=copy.deepcopy(model.config),
        state_dict=model.state_dict(),
        quantization_config=recipe(quantization, weight.dtype),
        dtype=weight.dtype,
        device_map={"": weight.device},
    )
    settle(quantized, where)
    return quantized


def settle(model: Any, where: str) -> None:
    """Make a model that transformers has quantized compute the same for a row whatever else is in its batch,
    and leave its weights alone.

    Raises: ConfigError if no layer was quantized.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    quantized = [(name, layer) for name, layer in layers if isinstance(layer, (Linear4bit, Linear8bitLt))]
    if not quantized:
        raise ConfigError(
            f"{where}: quantization: the model has no linear layers that bitsandbytes quantizes"
        )
    for name, layer in quantized:
        if isinstance(layer, Linear8bitLt):
            model.set_submodule(name, Int8Linear(layer.weight, layer.weight.SCB, layer.bias))
        elif layer.weight.device.type == "cpu":
            model.set_submodule(name, Linear4bitOnCpu(layer.weight, layer.weight.quant_state, layer.bias))


class Int8Linear(nn.Module):
    """x · (q · s)ᵀ + b with int8 weights q (N, K) and one scale s per output (N,).

    On the CPU everything is computed in float32, which is faster there than any narrower type and reads a
    quarter of the bytes that float32 weights take.
    """

    def __init__(self, weight_NK: Tensor, absmax_N: Tensor, bias_N: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        self.weight = nn.Parameter(weight_NK.data.as_subclass(Tensor), requires_grad=False)
        self.bias = None if bias_N is None else nn.Parameter(bias_N.data, requires_grad=False)
        self.scale: Tensor
        self.register_buffer("scale", absmax_N.float() / 127.0)

    def forward(self, input: Tensor) -> Tensor:
        """(…, K) to (…, N), in the input's dtype; differentiable in the input."""
        dtype = torch.float32 if input.device.type == "cpu" else input.dtype
        output: Tensor = _Int8Product.apply(  # type: ignore[no-untyped-call]
            input.to(dtype), self.weight, self.scale.to(dtype)
        )
        if self.bias is not None:
            output = output + self.bias.to(dtype)
        return output.to(input.dtype)

    def extra_repr(self) -> str:
        """The shape, as `nn.Linear` shows it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class _Int8Product(torch.autograd.Function):
    """Keeps the int8 weights for the backward pass, not their float copy."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight_NK: Tensor, scale_N: Tensor) -> Tensor:
        ctx.save_for_backward(weight_NK, scale_N)
        return functional.linear(input, weight_NK.to(input.dtype)).mul_(scale_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight_NK, scale_N = ctx.saved_tensors
        return (grads[0] * scale_N) @ weight_NK.to(grads[0].dtype), None, None


class Linear4bitOnCpu(nn.Module):
    """x · Wᵀ + b, where W (N, K) is kept in 4 bits per weight and one scale per block of weights.

    bitsandbytes 0.50 counts blocks from the start of each row on processors with AVX-512, while they are made over
    the whole matrix: its numbers are wrong there unless blocks divide K. So the rows that it is shown are the blocks.
    Its own layer would also repack the weights in place at the first call on some processors, and lose their
    gradients.
    """

    def __init__(self, weight: nn.Parameter, state: Any, bias_N: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = state.shape
        self.weight = weight
        self.bias = None if bias_N is None else nn.Parameter(bias_N.data, requires_grad=False)
        self._blocks = copy.copy(state)
        size = math.prod(state.shape)
        per_row = state.blocksize if size % state.blocksize == 0 else size
        self._blocks.shape = torch.Size((size // per_row, per_row))

    def dequantized(self) -> Tensor:
        """W (N, K), in the dtype in which it was quantized."""
        from bitsandbytes.functional import dequantize_4bit

        blocks: Tensor = dequantize_4bit(self.weight.data, self._blocks)
        return blocks.view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """(…, K) to (…, N), in the input's dtype; differentiable in the input."""
        output: Tensor = _Product4bit.apply(input, self)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias.to(input.dtype)

    def extra_repr(self) -> str:
        """The shape, as `nn.Linear` shows it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class _Product4bit(torch.autograd.Function):
    """Makes the weights again for the backward pass instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: Linear4bitOnCpu) -> Tensor:
        ctx.layer = layer
        return functional.linear(input, layer.dequantized().to(input.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dequantized().to(grads[0].dtype), None
