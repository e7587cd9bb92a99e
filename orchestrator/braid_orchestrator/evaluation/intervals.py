"""How sure a mean over units of text is: bootstrap intervals, paired where predictors are compared on the same text.

Units (windows, or documents) are drawn again with replacement, all predictors' together, and of several texts each
text's own. The bounds are percentiles. They say how much a figure may change with other text of the same kind; they
are too narrow for a handful of units, and know nothing of another training seed.

Letters: U units, K columns that are summed up, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from braid_rpc.errors import InvalidRequestError

_COUNTS_AT_ONCE = 2**22
_MAX_SEED = 2**63


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the bounds of its interval; None where one unit doesn't tell."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Resampling:
    """``num_resamples`` draws; ``confidence`` is the share of them that the interval holds."""

    num_resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1:
            raise InvalidRequestError(f"resamples: got {self.num_resamples}, expected at least 1")
        if not 0.0 < self.confidence < 1.0:
            raise InvalidRequestError(f"confidence: got {self.confidence}, expected between 0 and 1")

    def sums(self, values_UK: Tensor, stratum: int = 0) -> Tensor:
        """(B, K) sums over as many units as there are, drawn anew each time, in float64.

        Args:
            values_UK: what each unit adds.
            stratum: a number that tells this text from others, which are drawn by themselves.
        """
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + stratum) % _MAX_SEED)
        num_units = values_UK.shape[0]
        at_once = max(1, _COUNTS_AT_ONCE // num_units)
        parts = []
        for begin in range(0, self.num_resamples, at_once):
            size = min(at_once, self.num_resamples - begin)
            drawn = torch.randint(num_units, (size, num_units), generator=generator)
            counts = torch.zeros(size, num_units, dtype=torch.float64)
            counts.scatter_add_(1, drawn, torch.ones(size, num_units, dtype=torch.float64))
            parts.append(counts @ values_UK.double())
        return torch.cat(parts)

    def estimate(self, value: float, resampled_B: Tensor | None) -> Estimate:
        """A figure with the bounds that the same figure has over resamples; None: without."""
        if resampled_B is None:
            return Estimate(value)
        outside = (1.0 - self.confidence) / 2
        levels = torch.tensor([outside, 1.0 - outside], dtype=torch.float64)
        low, high = torch.quantile(resampled_B.double(), levels).tolist()
        return Estimate(value, low, high)
