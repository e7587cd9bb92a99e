"""Targets and tables say what the figures of all seeds say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from braid_orchestrator.bench.worth.contest import BRAID, GATE, MLP_NO_CROSS, NO_CROSS, ORACLE
from braid_orchestrator.bench.worth.contest_report import rows_of
from braid_orchestrator.bench.worth.contest_result import ContestResult, Windows
from braid_orchestrator.bench.worth.measuring import Figures
from braid_orchestrator.bench.worth.specialist_contestants import TRAINED
from braid_orchestrator.bench.worth.specialist_parents import KINDS, START
from braid_orchestrator.bench.worth.specialist_report import (
    ROWS,
    RUN_NAMES,
    specialist_report,
    specialist_targets,
)
from braid_orchestrator.bench.worth.specialist_runs import UNTRAINED
from braid_orchestrator.bench.worth.specialist_texts import TEXTS

NAMES = {"braid": BRAID, "gate": GATE, "cut": NO_CROSS, "mlp": MLP_NO_CROSS, "oracle": ORACLE}


def rows(**bits: float) -> dict[str, Figures]:
    """3 bits per byte for everybody on every text, but for those named."""
    found = {row: {"test": {"mix": 3.0, "code": 3.0, "prose": 3.0}} for row in ROWS}
    for key, value in bits.items():
        text, who = key.split("_", 1)
        found[NAMES.get(who, who)]["test"][text] = value
    return found


def runs(figures: dict[str, Figures]) -> dict[str, ContestResult]:
    """Windows of 10 bytes each; the bits of each are off by a tenth, up or down, for everybody alike."""

    def windows(row: str) -> Windows:
        return {
            text: {
                "bits": [10 * figures[row]["test"][text] + off for off in (-0.1, 0.1, -0.1, 0.1)],
                "bytes": [10.0] * 4,
                "tokens": [4.0] * 4,
            }
            for text in TEXTS
        }

    untrained = [row for row in ROWS if row not in TRAINED]
    return {
        **{who: ContestResult({}, {}, 7, 60.0, 100.0) for who in (START, *KINDS)},
        UNTRAINED: ContestResult(
            {row: figures[row] for row in untrained}, {row: windows(row) for row in untrained}, 0, 1.0, 100.0
        ),
        **{who: ContestResult({who: figures[who]}, {who: windows(who)}, 7, 2.0, 200.0) for who in TRAINED},
    }


def test_targets_are_of_the_means_over_seeds() -> None:
    first = rows(mix_braid=1.8, mix_gate=2.1, mix_cut=1.9, mix_oracle=1.5, code_code=1.6, code_braid=1.7)
    second = rows(mix_braid=2.0, mix_gate=1.9, mix_cut=2.1, mix_oracle=1.5, code_code=1.8, code_braid=1.7)
    targets = {
        target.name: target for target in specialist_targets(specialist_report([runs(first), runs(second)]))
    }
    assert len(targets) == 6
    gate = targets["mix: braid below the token gate"]
    assert gate.value == pytest.approx(5.0) and gate.met
    assert targets["mix: braid below the no-cross control"].value == pytest.approx(5.0)
    assert targets["code: braid above the better specialist"].value == pytest.approx(0.0)
    assert targets["mix: closer to the oracle than the token gate, by"].value == pytest.approx(5.0)


def test_a_braid_that_is_worse_misses_every_target() -> None:
    worse = rows(mix_braid=3.1, code_braid=3.1, prose_braid=3.1, mix_oracle=2.0)
    targets = specialist_targets(specialist_report([runs(worse)]))
    assert not any(target.met for target in targets if target.unit != "min")


def test_a_stage_takes_both_cores_and_waits_for_the_one_before() -> None:
    first = runs(rows(mix_oracle=2.0))
    slow = {**first, TRAINED[0]: replace(first[TRAINED[0]], seconds=1800.0)}
    (minutes,) = (one for one in specialist_targets(specialist_report([first, slow])) if one.unit == "min")
    # The start, then both specialists, the singles, and the slow contestant beside all others.
    assert minutes.value == pytest.approx((60.0 + 60.0 + 1.0 + 1800.0) / 60.0)
    assert not minutes.met


@pytest.mark.parametrize(("cut", "mlp"), [(2.5, 2.0), (2.0, 2.5)])
def test_the_stronger_control_is_the_one_to_be_below(cut: float, mlp: float) -> None:
    found = rows(mix_braid=1.9, mix_cut=cut, mix_mlp=mlp)
    targets = specialist_targets(specialist_report([runs(found)]))
    name = NO_CROSS if cut < mlp else MLP_NO_CROSS
    control = next(target for target in targets if "control" in target.name)
    assert control.name == f"mix: braid below the {name}"
    assert control.value == pytest.approx(5.0)


def test_the_tables_have_a_row_for_everybody() -> None:
    results = [runs(rows(mix_braid=1.0)), runs(rows(mix_braid=2.0))]
    assert rows_of(results[0]) == rows(mix_braid=1.0)
    report = specialist_report(results)
    table = report.table(report.intervals())
    by_name = {str(row[0]): row for row in table.rows}
    assert len(by_name) == len(ROWS)
    assert by_name[BRAID][1:3] == (7, "1.5000 ± 0.7071")
    assert by_name[BRAID][-1] is None
    assert by_name["code alone"][1] == 0
    costs = {row[0]: row[1] for row in specialist_report(results[:1]).costs(RUN_NAMES).rows}
    assert len(costs) == 5 + len(TRAINED)
    assert costs["all runs of a seed, one after the other"] == 181.0 + 2.0 * len(TRAINED)


def test_intervals_are_over_windows_and_paired() -> None:
    results = [runs(rows(mix_braid=1.0)), runs(rows(mix_braid=2.0))]
    mix = specialist_report(results).intervals()["mix"]
    assert (mix.num_units, mix.num_bytes) == (4, 80)
    assert mix.row(BRAID).bits_per_byte.value == pytest.approx(1.5)
    gate = mix.row(GATE)
    low, high = gate.bits_per_byte.low, gate.bits_per_byte.high
    assert low is not None and high is not None and low < 3.0 < high
    assert gate.to_braid is not None
    difference = gate.to_braid.bits_per_byte
    assert (difference.low, difference.high) == (pytest.approx(1.5), pytest.approx(1.5))
