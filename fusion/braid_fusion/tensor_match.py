"""Whether tensors read from a file are those of the modules that they are for. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from braid_fusion.errors import CorruptWeights


def check_same_tensors(
    where: Path | str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raises: CorruptWeights, naming where they are from and what differs, unless names and shapes are the same."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        raise CorruptWeights(f"{where}: missing tensors {missing}, unexpected tensors {surplus}")
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape:
            raise CorruptWeights(
                f"{where}: {name}: got {tensor.dtype} {tuple(tensor.shape)}, "
                f"expected {wanted.dtype} {tuple(wanted.shape)}"
            )
