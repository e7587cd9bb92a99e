"""Which row may be seen from which, for the packed rows of one call.

Letters: T packed rows of one lane.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LaneRows:
    """The rows of one lane's shards, packed without padding: ``row_counts[i]`` (perhaps none) of sequence i from
    its position ``positions[i]`` on.

    ``seen[lane][row]`` is the position in that lane, within the same sequence, of the last token that may be seen
    from this row: one whose text ends at or before the row's, and that was settled by then; -1 for none. For the
    lane itself it is the row's own position.
    """

    row_counts: tuple[int, ...]
    positions: tuple[int, ...]
    seen: tuple[tuple[int, ...], ...]

    @property
    def num_rows(self) -> int:
        """T."""
        return sum(self.row_counts)


@dataclass(frozen=True, slots=True)
class Alignment:
    """All lanes of one call. ``lane_of[s]`` is the lane of shard s; lane 0 is the anchor's."""

    lane_of: tuple[int, ...]
    lanes: tuple[LaneRows, ...]

    def of_shard(self, shard: int) -> LaneRows:
        """The rows of one shard."""
        return self.lanes[self.lane_of[shard]]
