"""A text too long to be tokenized at once, in overlapping parts that are joined where both read it alike.

Tokenizing takes some hundred bytes of memory per token for a while, so a text of a gigabyte would take a hundred of
them. What a tokenizer makes of a place depends on little around it: where two parts overlap, their tokens differ near
the ends of each part and agree in between, and there one can go over into the other. Where they don't agree, as in a
megabyte of one letter, the part before is read again, twice as long. Knows no tokenizer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from braid_orchestrator.engine.text import Encoded

PART_CHARS = 1 << 18
OVERLAP_CHARS = 1 << 11


@dataclass(frozen=True, slots=True)
class _Part:
    """Characters ``begin`` to ``end`` of a text, and the tokens of these, whose ``starts`` count in the text."""

    begin: int
    end: int
    token_ids: tuple[int, ...]
    starts: list[int]


def encode_in_parts(
    encode: Callable[[str], Encoded],
    text: str,
    *,
    part_chars: int = PART_CHARS,
    overlap_chars: int = OVERLAP_CHARS,
) -> Iterator[tuple[Sequence[int], int]]:
    """The tokens that ``encode`` makes of the whole text, a part at a time.

    Args:
        encode: without special tokens.
        part_chars: what is encoded at once, if possible; at least twice ``overlap_chars``.

    Yields: token ids, and the characters of the text that they and those before reach.
    """

    def part_from(begin: int, num_chars: int) -> _Part:
        end = min(begin + num_chars, len(text))
        encoded = encode(text[begin:end])
        return _Part(begin, end, encoded.token_ids, [begin + start for start, _ in encoded.offsets])

    part, done = part_from(0, part_chars), 0
    while part.end < len(text):
        following = part_from(part.end - overlap_chars, part_chars)
        cut = _place_to_go_over(part, following)
        if cut is None:
            part = part_from(part.begin, 2 * (part.end - part.begin))
            continue
        yield part.token_ids[bisect_left(part.starts, done) : bisect_left(part.starts, cut)], cut
        part, done = following, cut
    yield part.token_ids[bisect_left(part.starts, done) :], len(text)


def _place_to_go_over(part: _Part, following: _Part) -> int | None:
    """The character, in the middle half of what both have read, where a token begins in both and all around it
    they agree; None if they don't."""
    margin = (part.end - following.begin) // 4
    low, high = following.begin + margin, part.end - margin
    first, last = bisect_left(part.starts, low), bisect_left(part.starts, high)
    shift = bisect_left(following.starts, low) - first
    if (
        part.starts[first:last] != following.starts[first + shift : last + shift]
        or part.token_ids[first:last] != following.token_ids[first + shift : last + shift]
        or bisect_left(following.starts, high) != last + shift
    ):
        return None
    return part.starts[(first + last) // 2] if first < last else None
