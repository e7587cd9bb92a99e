"""Sides measured in turns, so that whatever else the machine does falls on all of them alike.

A round measures every side once, each round beginning with another one. The first round warms up and doesn't
count. Figures are medians; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

ResultT = TypeVar("ResultT")


def interleave(
    sides: Mapping[str, Callable[[], ResultT]], num_rounds: int, on_measured: Callable[[str], None]
) -> dict[str, list[ResultT]]:
    """``num_rounds`` results per side, after a round that is thrown away."""
    names = list(sides)
    results: dict[str, list[ResultT]] = {name: [] for name in names}
    for number in range(num_rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            result = sides[name]()
            if number > 0:
                results[name].append(result)
            on_measured(name)
    return results


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return median(a / b for a, b in zip(above, below, strict=True))


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles (or extremes, of few values), relative to the median."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return (ordered[len(ordered) - 1 - quarter] - ordered[quarter]) / 2 / median(ordered)
