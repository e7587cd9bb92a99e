"""Draws follow the distribution that the options leave."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from braid_fusion.grafting.drawing import draw

ODDS = [0.5, 0.25, 0.15, 0.07, 0.03]
LOGITS = torch.tensor(ODDS).log()


def draws(count: int = 300, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Counter[int]:
    generator = torch.Generator().manual_seed(1)
    return Counter(draw(LOGITS, temperature, top_k, top_p, generator) for _ in range(count))


def test_frequencies_are_the_probabilities() -> None:
    found = draws(4000)
    assert [found[token] / 4000 for token in range(5)] == pytest.approx(ODDS, abs=0.03)


def test_a_temperature_is_a_power_of_the_probabilities() -> None:
    squared = [odds**2 / sum(one**2 for one in ODDS) for odds in ODDS]
    found = draws(4000, temperature=0.5)
    assert [found[token] / 4000 for token in range(5)] == pytest.approx(squared, abs=0.03)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0.0}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.74}, {0, 1}),
        ({"top_p": 0.76}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.5}, {0}),
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
    ],
)
def test_only_what_the_options_leave_is_drawn(options: dict[str, Any], expected: set[int]) -> None:
    assert set(draws(**options)) == expected
