"""What the experiment with a pretrained model reports: rows, and targets on means over the seeds. Runs nothing."""

from __future__ import annotations

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
from braid_orchestrator.bench.worth.pretrained_runs import STRETCHES, UNTRAINED
from braid_orchestrator.bench.worth.pretrained_texts import TEXTS
from braid_orchestrator.bench.worth.texts import MIX

ROWS = (
    *SINGLES,
    UNIFORM,
    POSTERIOR,
    STRETCHES,
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
STAGES = ((PARTNER,), (UNTRAINED,), TRAINED)


def pretrained_report(seeds: Sequence[Runs]) -> ContestReport:
    """Of all runs of all seeds."""
    return ContestReport(seeds, SINGLES, ROWS, TEXTS)


def pretrained_targets(report: ContestReport) -> tuple[Target, ...]:
    """What the braid is to reach. Of the controls the better counts."""
    control = report.best(CONTROLS, MIX)
    nearest = report.best((row for row in ROWS if row not in (BRAID, ORACLE)), MIX)
    return (
        Target(f"mix: braid below the {GATE}", report.below(GATE, MIX), 0.0, ">=", "%"),
        Target(f"mix: braid below the {control}", report.below(control, MIX), 0.0, ">=", "%"),
        Target(
            f"mix: braid below the best of all others, the {nearest}",
            report.below(nearest, MIX),
            0.0,
            ">=",
            "%",
        ),
        report.minutes_target(STAGES),
    )
