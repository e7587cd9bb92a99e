"""Targets and tables say what the figures of all seeds say."""

from __future__ import annotations

import pytest

from braid_orchestrator.bench.worth.specialist_contestants import BRAID, GATE, NO_CROSS, TRAINED
from braid_orchestrator.bench.worth.specialist_report import (
    ROWS,
    contest_table,
    cost_table,
    specialist_targets,
)
from braid_orchestrator.bench.worth.specialist_runs import ORACLE, UNTRAINED, Figures, SpecialistResult


def rows(**bits: float) -> dict[str, Figures]:
    """3 bits per byte for everybody on every text, but for those named."""
    found = {row: {"test": {"mix": 3.0, "code": 3.0, "prose": 3.0}} for row in ROWS}
    for key, value in bits.items():
        text, who = key.split("_", 1)
        names = {"braid": BRAID, "gate": GATE, "cut": NO_CROSS, "oracle": ORACLE}
        found[names.get(who, who)]["test"][text] = value
    return found


def test_targets_are_of_the_means_over_seeds() -> None:
    first = rows(mix_braid=1.8, mix_gate=2.1, mix_cut=1.9, mix_oracle=1.5, code_code=1.6, code_braid=1.7)
    second = rows(mix_braid=2.0, mix_gate=1.9, mix_cut=2.1, mix_oracle=1.5, code_code=1.8, code_braid=1.7)
    targets = {target.name: target for target in specialist_targets([first, second])}
    assert len(targets) == 5
    gate = targets["mix: braid below the gate per token"]
    assert gate.value == pytest.approx(5.0) and gate.met
    assert targets["mix: braid below the no-cross control"].value == pytest.approx(5.0)
    assert targets["code: braid above the better specialist"].value == pytest.approx(0.0)
    assert targets["mix: distance to the oracle, braid / gate per token"].value == pytest.approx(0.8)


def test_a_braid_that_is_worse_misses_every_target() -> None:
    worse = rows(mix_braid=3.1, code_braid=3.1, prose_braid=3.1, mix_oracle=2.0)
    assert not any(target.met for target in specialist_targets([worse]))


def test_the_tables_have_a_row_for_everybody() -> None:
    figures = rows(mix_braid=1.0)
    results = {
        UNTRAINED: SpecialistResult({}, 0, 1.0, 100.0),
        **{who: SpecialistResult({}, 7, 2.0, 200.0) for who in TRAINED},
    }
    table = contest_table([figures, rows(mix_braid=2.0)], [results, results])
    by_name = {str(row[0]): row for row in table.rows}
    assert len(by_name) == len(ROWS)
    assert by_name[BRAID][1:3] == (7, "1.5000 ± 0.7071")
    assert by_name["code alone"][1] == 0
    costs = {row[0]: row[1] for row in cost_table([results]).rows}
    assert len(costs) == 2 + len(TRAINED)
    assert costs["all runs of a seed, one after the other"] == 1.0 + 2.0 * len(TRAINED)
