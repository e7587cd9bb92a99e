"""Where texts come from, named alike however a user has put it, so that the same text is not taken twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Origin(NamedTuple):
    """The rows ``begin`` to ``end`` (not included) of a data set's split, and what is read of each. A file is one
    row."""

    name: str
    begin: int = 0
    end: int = 1
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


def in_common(some: Iterable[Origin], others: Iterable[Origin]) -> Origin | None:
    """The first by name of ``some`` of which a row is in ``others`` too, whatever is read of it."""
    parts: dict[str, list[Origin]] = {}
    for other in others:
        parts.setdefault(other.name, []).append(other)
    for one in sorted(some):
        if any(one.begin < other.end and other.begin < one.end for other in parts.get(one.name, ())):
            return one
    return None


def taken_twice(texts: Iterable[Iterable[Origin]]) -> Origin | None:
    """What is in two of the texts, or a part of it: the same fields of the same row."""
    before: dict[str, list[Origin]] = {}
    for text in texts:
        own = list(text)
        for field in sorted({field for one in own for field in one.fields or ("",)}):
            reading = [one for one in own if field in (one.fields or ("",))]
            common = in_common(reading, before.get(field, ()))
            if common is not None:
                return common
            before.setdefault(field, []).extend(reading)
    return None
