"""What the experiment with two specialists reports: rows, and targets on means over the seeds. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from braid_orchestrator.bench.report import Target
from braid_orchestrator.bench.worth.contest import BRAID, CONTROLS, GLOBAL, LORA, ORACLE, POSTERIOR, UNIFORM
from braid_orchestrator.bench.worth.contest_report import ContestReport, Runs
from braid_orchestrator.bench.worth.specialist_contestants import GATES, TRAINED, WITH_ITSELF, WITH_RANDOM
from braid_orchestrator.bench.worth.specialist_parents import KINDS, START
from braid_orchestrator.bench.worth.specialist_runs import SOUP, UNTRAINED
from braid_orchestrator.bench.worth.specialist_texts import TEXTS
from braid_orchestrator.bench.worth.texts import MIX

ROWS = (
    *KINDS,
    SOUP,
    UNIFORM,
    POSTERIOR,
    GLOBAL,
    *GATES,
    LORA,
    WITH_ITSELF,
    WITH_RANDOM,
    *CONTROLS,
    BRAID,
    ORACLE,
)
RUN_NAMES: dict[str, str] = {
    START: "the common start",
    UNTRAINED: "singles and their ensembles",
    **{kind: f"the specialist for {kind}" for kind in KINDS},
}
STAGES = ((START,), KINDS, (UNTRAINED,), TRAINED)


def specialist_report(seeds: Sequence[Runs]) -> ContestReport:
    """Of all runs of all seeds."""
    return ContestReport(seeds, KINDS, ROWS, TEXTS)


def specialist_targets(report: ContestReport) -> tuple[Target, ...]:
    """What the braid is to reach. Of the gates and of the controls the best counts."""
    nearest = report.best((row for row in ROWS if row not in (BRAID, ORACLE)), MIX)
    gate, control = report.best(GATES, MIX), report.best(CONTROLS, MIX)
    better = {text: report.best(KINDS, text) for text in KINDS}
    return (
        Target(f"mix: braid below the {gate}", report.below(gate, MIX), 3.0, ">=", "%"),
        Target(f"mix: braid below the {control}", report.below(control, MIX), 1.0, ">=", "%"),
        *(
            Target(
                f"{text}: braid above the better specialist",
                -report.below(better[text], text),
                0.5,
                "<=",
                "%",
            )
            for text in KINDS
        ),
        Target(
            f"mix: closer to the oracle than the {nearest}, by", report.below(nearest, MIX), 0.0, ">=", "%"
        ),
        report.minutes_target(STAGES),
    )
