"""Which session and position each packed row belongs to, and what those sessions keep. Knows no strategy.

Strategies learn how rows relate from here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from braid_fusion.row_cache import RowCache


@dataclass(frozen=True, slots=True)
class FusionContext:
    """The rows of one call, packed without padding: ``row_counts[i]`` rows of sequence i from its position
    ``positions[i]`` on.

    ``caches`` are the sequences' own at this fusion point; None means whole sequences from position 0, as in
    training. Metrics cost time and are computed only where ``want_metrics`` is true.
    """

    row_counts: tuple[int, ...]
    positions: tuple[int, ...]
    caches: tuple[RowCache, ...] | None = None
    want_metrics: bool = True

    @classmethod
    def whole(cls, lengths: Sequence[int], *, want_metrics: bool = True) -> FusionContext:
        """Whole sequences of these lengths."""
        return cls(tuple(lengths), (0,) * len(lengths), None, want_metrics)

    @property
    def num_rows(self) -> int:
        """T: all rows of the call."""
        return sum(self.row_counts)

    def part(self, key: int) -> FusionContext:
        """The same rows with caches of their own under ``key``."""
        if self.caches is None:
            return self
        return replace(self, caches=tuple(cache.part(key) for cache in self.caches))
