"""Trained modules as one file or one folder. No pickle: everything read is tensors and text.

A path that ends in ``.pt`` is a torch file (read with ``weights_only``), ``.safetensors`` one file of that kind,
anything else a folder of `braid_fusion.weights`, which services load as a version.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from braid_fusion.packed_weights import plan_differences
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_fusion.weights import list_versions, load_weights, save_stack
from braid_rpc.errors import CorruptWeightsError, UnknownVersionError, WeightMismatchError
from braid_services.fusion.translation import braid_errors

_PLAN_KEY = "braid_plan"


def save_modules(stack: FusionStack, path: Path, training_record: Mapping[str, Any] | None = None) -> None:
    """Write all modules of a stack, with the plan that they belong to."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stack.state_dict().items()}
    if path.suffix == ".pt":
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({_PLAN_KEY: stack.plan.to_json(), "tensors": tensors}, path)
    elif path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={_PLAN_KEY: stack.plan.to_json()})
    else:
        save_stack(stack, path, training_record)


def load_modules(stack: FusionStack, path: Path) -> None:
    """Put saved modules into a stack of the same plan; after an error it is unchanged.

    Raises: UnknownVersionError if there is no such file; WeightMismatchError, naming what differs;
        CorruptWeightsError.
    """
    if not path.exists():
        raise UnknownVersionError(f"fusion weights: no file or folder {path}")
    if path.is_dir():
        with braid_errors():
            load_weights(stack, path)
        return
    plan_json, tensors = _read_torch(path) if path.suffix == ".pt" else _read_safetensors(path)
    try:
        saved_plan = BraidPlan.from_json(plan_json)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptWeightsError(f"{path}: holds no plan: {error}") from error
    differences = plan_differences(saved_plan, stack.plan)
    if differences:
        raise WeightMismatchError(f"{path}: made for another braid: {'; '.join(differences)}")
    expected = {name: tuple(tensor.shape) for name, tensor in stack.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))
        raise CorruptWeightsError(f"{path}: tensors are not those of its plan, such as {wrong[0]}")
    stack.load_state_dict(tensors)


def newest_version(folder: Path) -> str:
    """The version made last. Raises: UnknownVersionError if there is none, CorruptWeightsError."""
    with braid_errors():
        cards = list_versions(folder)
    if not cards:
        raise UnknownVersionError(f"fusion weights: no version in {folder}, expected at least one")
    return cards[-1].version


def _read_torch(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return str(found[_PLAN_KEY]), dict(found["tensors"])
    except (
        OSError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise CorruptWeightsError(f"{path}: not a file of fusion weights: {_first_line(error)}") from error


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            plan_json = (file.metadata() or {}).get(_PLAN_KEY, "")
            return plan_json, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CorruptWeightsError(f"{path}: not a safetensors file: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
