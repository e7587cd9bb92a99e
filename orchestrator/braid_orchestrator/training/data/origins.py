"""Where texts come from, named alike however a user has put it, so that the same text is not taken twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Origin(NamedTuple):
    """The rows ``begin`` to ``end`` (not included) of a data set's split. A file is one row."""

    name: str
    begin: int = 0
    end: int = 1

    def __str__(self) -> str:
        return self.name


def in_common(some: Iterable[Origin], others: Iterable[Origin]) -> Origin | None:
    """The first by name of ``some`` that is in ``others`` too, or a part of it."""
    parts: dict[str, list[Origin]] = {}
    for other in others:
        parts.setdefault(other.name, []).append(other)
    for one in sorted(some):
        if any(one.begin < other.end and other.begin < one.end for other in parts.get(one.name, ())):
            return one
    return None


def taken_twice(texts: Iterable[Iterable[Origin]]) -> Origin | None:
    """What is in two of the texts, or a part of it."""
    before: list[Origin] = []
    for text in texts:
        own = list(text)
        common = in_common(own, before)
        if common is not None:
            return common
        before += own
    return None
