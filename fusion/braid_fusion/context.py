"""Which session and position each packed row belongs to, and what those sessions keep. Knows no strategy.

Strategies learn how rows relate from here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from braid_fusion.alignment.rows import Alignment
from braid_fusion.row_cache import RowCache


@dataclass(frozen=True, slots=True)
class FusionContext:
    """The rows of one call, packed without padding: ``row_counts[i]`` rows of sequence i from its position
    ``positions[i]`` on.

    ``caches`` are the sequences' own at this fusion point; None means whole sequences from position 0, as in
    training. Metrics cost time and are computed only where ``want_metrics`` is true.

    Where shards have different tokenizers, ``alignment`` tells the rows of each lane; what stands here is then
    that of the anchor's.
    """

    row_counts: tuple[int, ...]
    positions: tuple[int, ...]
    caches: tuple[RowCache, ...] | None = None
    want_metrics: bool = True
    alignment: Alignment | None = None

    @classmethod
    def whole(
        cls, lengths: Sequence[int], *, want_metrics: bool = True, alignment: Alignment | None = None
    ) -> FusionContext:
        """Whole sequences of these lengths, in the anchor's tokens."""
        return cls(tuple(lengths), (0,) * len(lengths), None, want_metrics, alignment)

    @property
    def num_rows(self) -> int:
        """T: all rows of the call."""
        return sum(self.row_counts)

    def rows_of_shard(self, shard: int) -> int:
        """How many rows a shard has in this call."""
        return self.num_rows if self.alignment is None else self.alignment.of_shard(shard).num_rows

    def of_lane(self, lane: int) -> FusionContext:
        """One lane's rows and caches, as if there were no other."""
        if self.alignment is None:
            return self
        rows = self.alignment.lanes[lane]
        caches = None if self.caches is None else tuple(cache.lane(lane) for cache in self.caches)
        return FusionContext(rows.row_counts, rows.positions, caches, self.want_metrics)

    def part(self, key: int) -> FusionContext:
        """The same rows with caches of their own under ``key``."""
        if self.caches is None:
            return self
        return replace(self, caches=tuple(cache.part(key) for cache in self.caches))
