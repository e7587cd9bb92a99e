"""Seeded generators and states for the resonance components."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor


@pytest.fixture
def generator() -> Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Normal numbers of a shape, the same at every call with the same arguments."""

    def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return normal
