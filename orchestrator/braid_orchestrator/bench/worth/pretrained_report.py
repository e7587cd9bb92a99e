"""What the experiment with a pretrained model reports: rows, and targets on means over the seeds. Runs nothing."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from braid_orchestrator.bench.report import Target
from braid_orchestrator.bench.worth.contest import (
    BRAID,
    CONTROLS,
    GATE,
    GLOBAL,
    LORA,
    ORACLE,
    POSTERIOR,
    UNIFORM,
)
from braid_orchestrator.bench.worth.contest_report import ContestReport, Runs
from braid_orchestrator.bench.worth.pretrained_contestants import (
    PARTNER,
    SINGLES,
    TRAINED,
    WITH_ITSELF,
    WITH_RANDOM,
)
from braid_orchestrator.bench.worth.pretrained_runs import UNTRAINED
from braid_orchestrator.bench.worth.pretrained_texts import TEXTS
from braid_orchestrator.bench.worth.texts import MIX

ROWS = (
    *SINGLES,
    UNIFORM,
    POSTERIOR,
    GLOBAL,
    GATE,
    LORA,
    WITH_ITSELF,
    WITH_RANDOM,
    *CONTROLS,
    BRAID,
    ORACLE,
)
RUN_NAMES: dict[str, str] = {PARTNER: "the partner's own training", UNTRAINED: "singles and their ensembles"}
NUM_CORES = 2
MINUTES_AT_MOST = 30.0


def pretrained_report(seeds: Sequence[Runs]) -> ContestReport:
    """Of all runs of all seeds."""
    return ContestReport(seeds, SINGLES, ROWS, TEXTS)


def pretrained_targets(report: ContestReport) -> tuple[Target, ...]:
    """What the braid is to reach. Of the controls the better counts."""
    control = report.best(CONTROLS, MIX)
    minutes = max(seconds_of_seed(runs) for runs in report.seeds) / 60.0
    return (
        Target(f"mix: braid below the {GATE}", report.below(GATE, MIX), 0.0, ">=", "%"),
        Target(f"mix: braid below the {control}", report.below(control, MIX), 0.0, ">=", "%"),
        Target(f"a seed on {NUM_CORES} cores", minutes, MINUTES_AT_MOST, "<=", "min"),
    )


def seconds_of_seed(runs: Runs) -> float:
    """From beginning to end, where runs that wait for none go to the first core that is free."""
    free_at = [0.0] * NUM_CORES
    for who in TRAINED:
        heapq.heapreplace(free_at, free_at[0] + runs[who].seconds)
    return runs[PARTNER].seconds + runs[UNTRAINED].seconds + max(free_at)
