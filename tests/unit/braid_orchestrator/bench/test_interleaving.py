"""Sides take turns, the first round doesn't count, and ratios are taken within a round."""

from __future__ import annotations

import pytest

from braid_orchestrator.bench.interleaving import interleave, median_ratio, spread


def test_every_round_measures_every_side_and_begins_with_another() -> None:
    order: list[str] = []
    told: list[str] = []

    def side(name: str) -> int:
        order.append(name)
        return len(order)

    results = interleave({name: lambda name=name: side(name) for name in "abc"}, 2, told.append)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert told == order
    assert results == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}


def test_a_ratio_is_not_fooled_by_a_machine_that_slows_down() -> None:
    assert median_ratio([1.1, 2.2, 4.4], [1.0, 2.0, 4.0]) == pytest.approx(1.1)


def test_the_spread_leaves_out_the_extremes() -> None:
    assert spread([10.0, 9.0, 11.0, 9.0, 10.0, 9.5, 10.5, 99.0]) == pytest.approx(0.05)
    assert spread([8.0, 12.0]) == pytest.approx(0.2)
