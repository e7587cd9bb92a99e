"""Whether tensors read from a file are those of the modules that they are for. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from braid_fusion.errors import CorruptWeights


def check_same_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises: CorruptWeights, naming the file and what differs, unless names and shapes are the same."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        raise CorruptWeights(f"{path}: missing tensors {missing}, unexpected tensors {surplus}")
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape:
            raise CorruptWeights(
                f"{path}: {name}: got {tensor.dtype} {tuple(tensor.shape)}, "
                f"expected {wanted.dtype} {tuple(wanted.shape)}"
            )
