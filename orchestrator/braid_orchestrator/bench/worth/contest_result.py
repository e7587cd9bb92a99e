"""What one run of a contest found, in plain values that a file can keep. Runs nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from braid_orchestrator.bench.machine import peak_bytes
from braid_orchestrator.bench.worth.measuring import TEST, Figures, Sums, figures_of

Windows = dict[str, dict[str, list[float]]]  # of the test texts: bits, bytes and tokens of each window


@dataclass(frozen=True, slots=True)
class ContestResult:
    """``figures[row][side][text]`` in bits per byte, and ``windows[row][text]`` of the test texts, for intervals; a
    training run without rows has none. ``peak_mib`` is the process's, all its runs so far together."""

    figures: dict[str, Figures]
    windows: dict[str, Windows]
    num_parameters: int
    seconds: float
    peak_mib: float
    notes: Mapping[str, Any] = field(default_factory=dict)


def result_of(
    sums: Mapping[str, Sums], num_parameters: int, notes: Mapping[str, Any], started: float
) -> ContestResult:
    """A run's, by its rows. ``started``: on `time.perf_counter`."""
    return ContestResult(
        {row: figures_of(by_side) for row, by_side in sums.items()},
        {row: _windows(by_side) for row, by_side in sums.items()},
        num_parameters,
        time.perf_counter() - started,
        peak_bytes() / 2**20,
        notes,
    )


def _windows(sums: Sums) -> Windows:
    return {
        name: {
            "bits": one.bits_U.tolist(),
            "bytes": one.bytes_U.tolist(),
            "tokens": one.tokens_U.tolist(),
        }
        for name, one in sums[TEST].items()
    }
