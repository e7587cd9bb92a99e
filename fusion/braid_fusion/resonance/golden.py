"""Points spread evenly by the golden angle, for any number of them. Letters: n points, X the axes of space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))


def spaced_angles(count: int) -> Tensor:
    """(n,): 0, 1, 2, … golden angles, modulo a turn: any stretch of them lies evenly around the circle."""
    return torch.arange(count, dtype=torch.float64).mul(GOLDEN_ANGLE).remainder(2.0 * math.pi).float()


def sphere_points(count: int) -> Tensor:
    """(n, 3): unit vectors on the Fibonacci sphere: equal steps in height, golden angles in longitude."""
    height_n = 1.0 - (2.0 * torch.arange(count, dtype=torch.float64) + 1.0) / count
    radius_n = (1.0 - height_n.square()).sqrt()
    angle_n = torch.arange(count, dtype=torch.float64) * GOLDEN_ANGLE
    return torch.stack([radius_n * angle_n.cos(), radius_n * angle_n.sin(), height_n], dim=-1).float()
