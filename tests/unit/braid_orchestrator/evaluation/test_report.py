"""A report of given sums, and how it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from braid_orchestrator.evaluation import (
    BRAID,
    ORACLE,
    MeasuredText,
    Predictor,
    Report,
    Resampling,
    UnitSums,
    make_report,
)
from braid_orchestrator.evaluation.plot import plot_report
from braid_orchestrator.evaluation.table import report_table

A, B = Predictor("shard", "braid"), Predictor("shard", "b")  # a shard may be called as the braid is


def sums(*bits: float, hits: bool = True) -> UnitSums:
    ones = torch.ones(len(bits), dtype=torch.float64)
    return UnitSums(torch.tensor(bits, dtype=torch.float64), 10 * ones, 4 * ones, ones if hits else None)


def report(*, hits: bool = True, units: int = 3) -> Report:
    rows = {
        A: sums(*[20.0, 30.0, 40.0][:units], hits=hits),
        B: sums(*[30.0, 40.0, 50.0][:units], hits=hits),
        BRAID: sums(*[18.0, 27.0, 36.0][:units], hits=hits),
        ORACLE: sums(*[10.0, 15.0, 20.0][:units], hits=hits),
    }
    return make_report([MeasuredText("text", "window", 1, rows)], Resampling(100))


def test_differences_are_to_the_best_shard_and_to_the_braid() -> None:
    (text,) = report().texts
    assert text.best_shard == "braid" and text.num_bytes == 30 and text.num_units == 3
    braid = text.row("braid", "braid")
    assert braid.bits_per_byte.value == pytest.approx(2.7) and braid.accuracy.value == pytest.approx(0.25)
    # On every unit a tenth less: no resample can tell another share.
    assert braid.to_best_shard.relative.value == pytest.approx(-0.1)
    assert braid.to_best_shard.relative.low == pytest.approx(braid.to_best_shard.relative.high)
    assert braid.to_best_shard.bits_per_byte.value == pytest.approx(-0.3)
    assert braid.to_best_shard.bits_per_byte.low < -0.3 < braid.to_best_shard.bits_per_byte.high
    assert braid.to_braid is None and text.row("braid", "shard").to_best_shard is None
    assert text.row("b").to_braid.relative.value == pytest.approx(12.0 / 8.1 - 1.0)
    with pytest.raises(KeyError):
        text.row("c")


def test_a_unit_without_tokens_tells_nothing() -> None:
    rows = {A: sums(20.0, 30.0), BRAID: sums(20.0, 30.0)}
    for one in rows.values():
        one.tokens_U[1] = one.bits_U[1] = one.bytes_U[1] = 0.0
    (text,) = make_report([MeasuredText("text", "window", 1, rows)], Resampling(10)).texts
    assert text.num_units == 1 and text.rows[0].bits_per_byte.low is None


def test_a_table_fits_a_terminal_and_marks_the_bound() -> None:
    console = Console(width=80, record=True, force_terminal=False)
    console.print(report_table(report()))
    shown = console.export_text()
    assert (
        "oracle (bound)" in shown and "2.700 ±" in shown and "-10.0 ±0.0%" in shown and "25.0 ±0.0%" in shown
    )
    assert "…" not in shown
    console.print(report_table(report(hits=False, units=1)))
    shown = console.export_text()
    assert "accuracy" not in shown and "±0" not in shown and "1 window" in shown


def test_a_picture_is_drawn_with_and_without_accuracy(tmp_path: Path) -> None:
    for name, shown in (("all", report()), ("bits", report(hits=False)), ("single", report(units=1))):
        plot_report(shown, tmp_path / "new" / f"{name}.png")
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
