"""The global random generators' states as plain values, to go on from where they were. Owns no generator."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """Of torch (and every CUDA device, where one is in use), Python, and numpy if it is loaded.

    Tensors, numbers, strings and lists only, which `torch.load` reads with ``weights_only``.
    """
    version, numbers, gauss = random.getstate()
    uses_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if uses_cuda else [],
        "python": [version, list(numbers), gauss],
        "numpy": _numpy_state(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave. Of CUDA devices, those that are there."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, index)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if state["numpy"] is not None:
        import numpy as np

        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def _numpy_state() -> list[Any] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    kind, keys, position, has_gauss, cached = numpy.random.get_state()
    return [kind, keys.tolist(), int(position), int(has_gauss), float(cached)]
