"""A report of given sums, and how it is shown."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from strict_parsing import parse_strictly

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


def report(*, hits: bool = True, units: int = 3, names: Sequence[str] = ("text",)) -> Report:
    rows = {
        A: sums(*[20.0, 30.0, 40.0][:units], hits=hits),
        B: sums(*[30.0, 40.0, 50.0][:units], hits=hits),
        BRAID: sums(*[18.0, 27.0, 36.0][:units], hits=hits),
        ORACLE: sums(*[10.0, 15.0, 20.0][:units], hits=hits),
    }
    return make_report([MeasuredText(name, "window", 1, rows) for name in names], Resampling(100))


def printed(shown: Report, width: int) -> str:
    console = Console(width=width, record=True, force_terminal=False, file=io.StringIO())
    console.print(report_table(shown))
    return console.export_text()


def figures_of(text: dict[str, Any]) -> Iterator[list[str]]:
    """What the table has to say of each row of the report's JSON."""

    def shown(figure: dict[str, float], scale: float, form: str) -> str:
        half = scale * (figure["high"] - figure["low"]) / 2
        return f"{scale * figure['value']:{form}} ±{half:{form.lstrip('+')}}"

    for row in text["rows"]:
        differences = [row[name]["relative"] for name in ("to_best_shard", "to_braid") if row[name]]
        yield [
            shown(row["bits_per_byte"], 1.0, ".3f"),
            *(f"{shown(difference, 100.0, '+.1f')}%" for difference in differences),
            f"{shown(row['accuracy'], 100.0, '.1f')}%",
        ]


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


def test_a_figure_that_is_not_finite_is_null_in_json() -> None:
    rows = {A: sums(20.0, math.inf), BRAID: sums(18.0, 27.0)}
    plain = make_report([MeasuredText("text", "window", 1, rows)], Resampling(10)).to_dict()
    shard, braid = parse_strictly(json.dumps(plain))["texts"][0]["rows"]
    assert shard["bits_per_byte"]["value"] is None and braid["bits_per_byte"]["value"] == pytest.approx(2.25)
    assert braid["to_best_shard"]["relative"]["value"] is None


def test_a_table_fits_a_terminal_and_marks_the_bound() -> None:
    shown = printed(report(), 80)
    assert (
        "oracle (bound)" in shown and "2.700 ±" in shown and "-10.0 ±0.0%" in shown and "25.0 ±0.0%" in shown
    )
    assert "…" not in shown
    shown = printed(report(hits=False, units=1), 80)
    assert "accuracy" not in shown and "±0" not in shown and "1 window" in shown


LONG_NAMES = [
    f"/srv/data/held-out/{'of-some-years/' * 3}{name}-2024.txt" for name in ("code", "prose", "x" * 60)
]


def test_a_text_without_accuracy_stands_beside_one_with_it() -> None:
    with_it, without = report(), report(hits=False, names=("other",))
    shown = printed(replace(with_it, texts=(*with_it.texts, *without.texts)), 80)
    assert "other" in shown and "accuracy" in shown


def test_a_long_name_leaves_the_figures_whole() -> None:
    assert all(len(name) >= 70 for name in LONG_NAMES)
    found = report(names=LONG_NAMES)
    shown = printed(found, 80)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
    assert all(name in shown for name in LONG_NAMES[:2]) and LONG_NAMES[2] in "".join(shown.split())
    rows = [
        line.split() for line in shown.splitlines() if "±" in line and "%" in line and "bootstrap" not in line
    ]
    expected = [figures for text in found.to_dict()["texts"] for figures in figures_of(text)]
    assert len(expected) == 4 * 4
    for cells, figures in zip(rows, expected, strict=True):
        assert " ".join(cells).endswith(" ".join(figures))


def test_where_figures_have_no_room_they_are_wrapped_at_their_intervals() -> None:
    found = report(names=LONG_NAMES)
    shown = printed(found, 48)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 48
    for text in found.to_dict()["texts"]:
        for figures in figures_of(text):
            assert set(" ".join(figures).split()) <= set(shown.split())
    narrowest = "".join(printed(found, 24).split())
    assert "…" not in narrowest and narrowest.count("±") == shown.count("±")


def test_the_oracle_is_explained_where_it_is_shown() -> None:
    alone = make_report(
        [MeasuredText("text", "window", 1, {A: sums(20.0, 30.0), BRAID: sums(18.0, 27.0)})], Resampling(10)
    )
    assert "oracle" in str(report_table(report()).caption) and "oracle" not in str(
        report_table(alone).caption
    )


def test_a_picture_is_drawn_with_and_without_accuracy(tmp_path: Path) -> None:
    for name, shown in (("all", report()), ("bits", report(hits=False)), ("single", report(units=1))):
        plot_report(shown, tmp_path / "new" / f"{name}.png")
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def only_in(unit: int) -> UnitSums:
    """Of a shard to which the other documents are one token each: those have nothing before them and don't count."""
    bytes_U = torch.zeros(5, dtype=torch.float64)
    bytes_U[unit] = 10.0
    return UnitSums(2 * bytes_U, bytes_U, bytes_U / 5, 0 * bytes_U)


def test_a_resample_without_a_byte_of_somebody_tells_nothing() -> None:
    rows = {A: only_in(0), BRAID: sums(15.0, 16.0, 17.0, 18.0, 19.0)}
    (text,) = make_report([MeasuredText("text", "document", 5, rows)], Resampling(200)).texts
    alone = text.row("braid", "shard").bits_per_byte
    assert (alone.value, alone.low, alone.high) == pytest.approx((2.0, 2.0, 2.0))
    to_best = text.row("braid", "braid").to_best_shard.relative
    assert -0.3 < to_best.low < to_best.value < to_best.high < 0.0


def test_where_most_resamples_tell_nothing_there_is_no_interval() -> None:
    rows = {A: only_in(0), B: only_in(1), BRAID: sums(15.0, 16.0, 17.0, 18.0, 19.0)}
    (text,) = make_report([MeasuredText("text", "document", 5, rows)], Resampling(200)).texts
    assert all(row.bits_per_byte.low is None for row in text.rows)
    assert text.row("b").to_braid.relative.value == pytest.approx(2.0 / 1.7 - 1.0)
