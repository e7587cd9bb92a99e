"""One session's tokens in all lanes, while its text grows. Plain numbers: knows no models and no tensors.

A row of one lane sees of another lane the last token whose text ends at or before its own and that was settled
with the text up to there. All is told by the anchor's tokens: a lane's token is settled with a certain one of
them, and stands level with a certain one. So what a row sees depends on no later text, in no lane.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from braid_fusion.alignment.rows import Alignment, LaneRows
from braid_fusion.alignment.settling import SettlingText, SettlingTokenizer


@dataclass(slots=True)
class WovenLane:
    """A lane other than the anchor's.

    ``token_ids`` are settled. ``level_with[j]`` is the position of the last of the anchor's tokens whose text ends
    at or before that of token j (-1: none). ``counts[t]`` tokens were settled once the anchor's token t was known,
    and ``pending[t]`` is the text behind them; None where the anchor stands within a character.
    """

    text: SettlingText
    token_ids: list[int] = field(default_factory=list)
    level_with: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    pending: list[str | None] = field(default_factory=list)

    def count(self, num_anchor_tokens: int) -> int:
        """Tokens that are settled with the first so many of the anchor's."""
        return self.counts[num_anchor_tokens - 1] if num_anchor_tokens else 0

    def copy(self) -> WovenLane:
        """The same, to grow differently."""
        return WovenLane(
            self.text.copy(), [*self.token_ids], [*self.level_with], [*self.counts], [*self.pending]
        )


class Weave:
    """Begins without tokens; `push` follows the anchor's."""

    def __init__(self, tokenizers: Sequence[SettlingTokenizer]) -> None:
        """One tokenizer per lane but the anchor's."""
        self.lanes = [WovenLane(tokenizer.begin()) for tokenizer in tokenizers]
        self._leading = [tokenizer.leading_ids for tokenizer in tokenizers]
        self._num_chars = 0
        self._reach: list[int] = []  # characters up to which each of the anchor's tokens reaches

    def __len__(self) -> int:
        """Tokens of the anchor."""
        return len(self._reach)

    def push(self, text: str, *, within_character: bool = False) -> None:
        """The anchor's next token made ``text`` certain. ``within_character``: it also holds a part of the
        character that follows."""
        first = not self._reach
        self._num_chars += len(text)
        self._reach.append(self._num_chars + within_character)
        for lane, leading in zip(self.lanes, self._leading, strict=True):
            if first:
                self._extend(lane, [(token_id, 0) for token_id in leading])
            self._extend(lane, [(token.token_id, token.end) for token in lane.text.push(text)])
            lane.counts.append(len(lane.token_ids))
            lane.pending.append(None if within_character else lane.text.pending)

    def rows(self, lane: int, begin: int, end: int) -> tuple[int, int]:
        """Position and number of the rows that a lane runs together with the anchor's rows [begin, end)."""
        if lane == 0:
            return begin, end - begin
        position = self.lanes[lane - 1].count(begin)
        return position, self.lanes[lane - 1].count(end) - position

    def seen(self, lane: int, begin: int, end: int) -> list[list[int]]:
        """``[other][row]``: what a lane's rows see of each lane, for its rows together with the anchor's
        [begin, end)."""
        position, count = self.rows(lane, begin, end)
        own = list(range(position, position + count))
        level = own if lane == 0 else self.lanes[lane - 1].level_with[position : position + count]
        seen = [level]
        for other, woven in enumerate(self.lanes, start=1):
            seen.append(own if other == lane else [woven.count(at + 1) - 1 for at in level])
        return seen

    def fitting(self, begin: int, end: int, max_rows: int) -> int:
        """The largest end of anchor rows, from ``begin + 1`` to ``end``, with at most so many rows in any lane; at
        least one of the anchor's all the same."""
        end = min(end, begin + max_rows)
        for lane in self.lanes:
            end = min(end, bisect_right(lane.counts, lane.count(begin) + max_rows, begin, max(end, begin)))
        return max(end, begin + 1)

    def anchor_tokens_within(self, lane: int, num_tokens: int) -> int:
        """How many of the anchor's tokens there may be at most for a lane to have so many at most."""
        return bisect_right(self.lanes[lane - 1].counts, num_tokens)

    def copy(self) -> Weave:
        """The same, to grow differently."""
        twin = Weave(())
        twin.lanes = [lane.copy() for lane in self.lanes]
        twin._leading, twin._num_chars, twin._reach = self._leading, self._num_chars, [*self._reach]
        return twin

    def _extend(self, lane: WovenLane, tokens: Sequence[tuple[int, int]]) -> None:
        for token_id, end in tokens:
            lane.token_ids.append(token_id)
            lane.level_with.append(bisect_right(self._reach, end) - 1)


def align(weaves: Sequence[Weave], spans: Sequence[tuple[int, int]], lane_of: Sequence[int]) -> Alignment:
    """The rows of a packed call: of weave i, the anchor's rows ``spans[i]``, ``[begin, end)``."""
    num_lanes = 1 + len(weaves[0].lanes)
    lanes = []
    for lane in range(num_lanes):
        rows = [weave.rows(lane, *span) for weave, span in zip(weaves, spans, strict=True)]
        seen: list[list[int]] = [[] for _ in range(num_lanes)]
        for weave, span in zip(weaves, spans, strict=True):
            for other, positions in enumerate(weave.seen(lane, *span)):
                seen[other].extend(positions)
        lanes.append(
            LaneRows(
                tuple(count for _, count in rows),
                tuple(position for position, _ in rows),
                tuple(tuple(positions) for positions in seen),
            )
        )
    return Alignment(tuple(lane_of), tuple(lanes))
