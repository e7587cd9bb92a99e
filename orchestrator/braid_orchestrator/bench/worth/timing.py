"""How long all runs of a seed take on a small machine. Runs nothing."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from braid_orchestrator.bench.report import Target

NUM_CORES = 2
MINUTES_AT_MOST = 30.0


def minutes_target(seeds: Iterable[Mapping[str, float]], stages: Sequence[Sequence[str]]) -> Target:
    """How long the slowest seed takes.

    Args:
        seeds: the seconds of each seed's runs, each run on a core of its own.
        stages: runs that wait for those of the stage before.
    """
    seconds = max(_seconds_on_cores(of_runs, stages) for of_runs in seeds)
    return Target(f"a seed on {NUM_CORES} cores", seconds / 60.0, MINUTES_AT_MOST, "<=", "min")


def _seconds_on_cores(of_runs: Mapping[str, float], stages: Sequence[Sequence[str]]) -> float:
    """From beginning to end, where a stage's runs go to the first core that is free, in their order."""
    total = 0.0
    for stage in stages:
        free_at = [0.0] * NUM_CORES
        for who in stage:
            heapq.heapreplace(free_at, free_at[0] + of_runs[who])
        total += max(free_at)
    return total
