"""What grafted layers are compared with: LoRA and an MLP adapter, as large as asked for, on any causal LM.

Each changes a model in place, freezes what the model had, and is nothing at all until it is trained.

Letters: B texts, T positions, D model width, F the adapter's width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid_fusion.grafting.layers import find_stack
from braid_fusion.initialisation import linear, zero_linear


def add_lora(model: nn.Module, num_parameters: int, seed: int) -> nn.Module:
    """Low-rank updates of all linear layers but the head (Hu et al., 2021), of the rank whose size comes nearest.

    Returns: the model to train and call; its trainable parameters are the updates.
    """
    from peft import LoraConfig, get_peft_model

    per_rank = sum(
        module.in_features + module.out_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    )
    rank = max(1, round(num_parameters / per_rank))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted: nn.Module = get_peft_model(model, config)
    return adapted


class MlpAdapter(nn.Module):
    """h + W₂ gelu(W₁ norm(h)) with W₂ = 0 at the start: a bottleneck after a layer (Houlsby et al., 2019)."""

    def __init__(self, model_width: int, width: int, generator: Generator) -> None:
        super().__init__()
        self.into = linear(model_width, width, generator)
        self.out = zero_linear(width, model_width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        normal_BTD = functional.layer_norm(hidden_BTD, hidden_BTD.shape[-1:])
        update_BTD: Tensor = self.out(functional.gelu(self.into(normal_BTD)))
        return hidden_BTD + update_BTD


class WithMlpAdapters(nn.Module):
    """A frozen model with adapters after some of its layers; called as the model is."""

    def __init__(self, model: nn.Module, positions: Sequence[int], num_parameters: int, seed: int) -> None:
        super().__init__()
        self.base = model.requires_grad_(False)
        width: int = model.config.hidden_size  # type: ignore[union-attr, assignment]
        adapter_width = max(1, round((num_parameters / len(positions) - width) / (2 * width + 1)))
        generator = Generator().manual_seed(seed)
        self.adapters = nn.ModuleList(MlpAdapter(width, adapter_width, generator) for _ in positions)
        _, layers = find_stack(model)
        for position, adapter in zip(positions, self.adapters, strict=True):
            layers[position].register_forward_hook(_after(adapter))

    def forward(self, *args: Any, **options: Any) -> Any:
        """What the model gives."""
        return self.base(*args, **options)


def _after(adapter: nn.Module) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(layer: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return adapter(output)
        return (adapter(output[0]), *output[1:])

    return hook


def num_trainable(module: nn.Module) -> int:
    """Parameters that training changes."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
