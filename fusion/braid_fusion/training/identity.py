"""What a checkpoint belongs to, as plain values, and how two such descriptions differ. Reads and writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from braid_fusion.differences import differences
from braid_fusion.errors import CheckpointMismatchError

_SAMPLES = 64


def check_same(what: str, saved: Mapping[str, Any], running: Mapping[str, Any]) -> None:
    """Raises: CheckpointMismatchError, naming each key that differs with both values."""
    found = differences(saved, running, "this run", there="the checkpoint has")
    if found:
        raise CheckpointMismatchError(f"checkpoint of another {what}: {'; '.join(found)}")


def describe_values(value: Any) -> Any:
    """The same with every tensor, in mappings and lists, told by its shape, dtype and a hash of its numbers."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{list(value.shape)} {value.dtype} {hashlib.sha256(data).hexdigest()[:16]}"
    if isinstance(value, Mapping):
        return {name: describe_values(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [describe_values(one) for one in value]
    return value


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What training changes in a module, not copied: its trainable parameters, and the persistent buffers of the
    submodules that own one, such as running means."""
    found: dict[str, Tensor] = {}
    for prefix, submodule in module.named_modules():
        own = dict(submodule.named_parameters(prefix=prefix, recurse=False))
        trainable = {name: parameter for name, parameter in own.items() if parameter.requires_grad}
        if trainable:
            kept = submodule.state_dict(keep_vars=True)
            buffers = submodule.named_buffers(prefix=prefix, recurse=False)
            found |= trainable
            found |= {name: buffer for name, buffer in buffers if name.rpartition(".")[2] in kept}
    return found


def describe_parameters(module: nn.Module) -> dict[str, Any]:
    """Shape and dtype of what training changes, and under "(frozen)" a hash of the parameters that it doesn't.

    Of a frozen parameter, name, shape, dtype and at most 64 of its numbers, evenly spread, enter the hash: enough
    to tell one base model from another in no time.
    """
    described: dict[str, Any] = {
        name: f"{list(tensor.shape)} {tensor.dtype}" for name, tensor in trained_tensors(module).items()
    }
    frozen = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            continue
        frozen.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode())
        numbers = parameter.detach().reshape(-1)
        stride = max(1, numbers.numel() // _SAMPLES)
        frozen.update(str(numbers[::stride][:_SAMPLES].to(torch.float64).tolist()).encode())
    described["(frozen)"] = frozen.hexdigest()[:16]
    return described


def tokens_hash(tokens: Tensor) -> str:
    """Of integer ids, whatever their dtype."""
    numbers = tokens.to(device="cpu", dtype=torch.int64).contiguous().numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]
