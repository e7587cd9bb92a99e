"""A report as a table for people: of each text its name on a line of its own, and a row for each predictor.

Measures nothing. Names give way to figures, and figures are never cut: where there is no room for them in one line,
they are wrapped.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from braid_orchestrator.evaluation.intervals import Estimate
from braid_orchestrator.evaluation.report import Figures, Report, TextReport

_STYLES = {"shard": "", "baseline": "", "braid": "bold", "bound": "dim italic"}
_GAP = 2
_LEAST_NAME = 8


def report_table(report: Report) -> Table:
    """All texts, one group of rows each; the best figure that somebody really has is bold."""
    has_accuracy = any(row.accuracy is not None for text in report.texts for row in text.rows)
    names = ["", "bits per byte", "to best shard", "to braid", *(["accuracy"] if has_accuracy else [])]
    header = [Text(name) for name in names]
    groups = [
        [[*cells, *[Text()] * (len(names) - len(cells))] for cells in _rows(text)] for text in report.texts
    ]
    widths = [
        max(cells[column].cell_len for cells in [header, *(row for rows in groups for row in rows)])
        for column in range(len(header))
    ]
    table = Table(
        title="bits per byte, lower is better" + (", and next-token accuracy" if has_accuracy else ""),
        caption="\n".join(_captions(report)),
        caption_justify="left",
        box=box.HORIZONTALS,
        padding=0,
    )
    table.add_column(_Columns([header], widths))
    for text, rows in zip(report.texts, groups, strict=True):
        table.add_section()
        units = f"{text.num_units:,} {text.unit}{'' if text.num_units == 1 else 's'}"
        table.add_row(
            Group(
                Text(text.name, "bold underline", overflow="fold"),
                Text(f"{text.num_bytes:,} bytes, {units}", "dim"),
                _Columns(rows, widths),
            )
        )
    return table


class _Columns:
    """Rows of cells, names first, in columns as wide as the console has room for. ``widths``: what they take whole,
    the same for all rows of a report, so that these stand under one another."""

    def __init__(self, rows: Sequence[Sequence[Text]], widths: Sequence[int]) -> None:
        self._rows = rows
        self._widths = widths

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grid = Table(box=None, show_header=False, padding=(0, 0, 0, _GAP))
        for index, width in enumerate(self._fitted(options.max_width)):
            grid.add_column(width=width, justify="left" if index == 0 else "right", overflow="fold")
        for row in self._rows:
            grid.add_row(*row)
        yield grid

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        whole = sum(self._widths) + _GAP * len(self._widths)
        return Measurement(min(whole, options.max_width), min(whole, options.max_width))

    def _fitted(self, max_width: int) -> list[int]:
        room = max_width - _GAP * len(self._widths)
        name, *figures = self._widths
        name = min(name, max(room - sum(figures), _LEAST_NAME))
        if name + sum(figures) > room:
            share = max(1, (room - name) // len(figures))
            figures = [min(width, share) for width in figures]
        return [name, *figures]


def _rows(text: TextReport) -> list[list[Text]]:
    best = min(row.bits_per_byte.value for row in text.rows if row.kind != "bound")
    return [_cells(row, best) for row in text.rows]


def _cells(row: Figures, best: float) -> list[Text]:
    style = _STYLES[row.kind]
    is_best = row.kind != "bound" and row.bits_per_byte.value == best
    cells = [
        Text(f"{row.name}{' (bound)' if row.kind == 'bound' else ''}", style),
        Text(_shown(row.bits_per_byte, 1.0, ".3f"), "bold" if is_best else style),
        Text("" if row.to_best_shard is None else _percent(row.to_best_shard.relative, "+"), style),
        Text("" if row.to_braid is None else _percent(row.to_braid.relative, "+"), style),
    ]
    return cells if row.accuracy is None else [*cells, Text(_percent(row.accuracy), style)]


def _percent(estimate: Estimate, sign: str = "") -> str:
    return f"{_shown(estimate, 100.0, f'{sign}.1f')}%"


def _shown(estimate: Estimate, scale: float, form: str) -> str:
    value = format(scale * estimate.value, form)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ±{scale * (estimate.high - estimate.low) / 2:{form.lstrip('+')}}"


def _captions(report: Report) -> list[str]:
    settings = report.settings
    lines = [f"±: half of the {settings.get('confidence', 0.95):.0%} bootstrap interval"]
    if "weights_version" in settings:
        lines.append(
            f"braid {settings['braid']} with weights {settings['weights_version']}; windows of {settings['window']} "
            f"tokens of {settings['anchor']}"
        )
    if report.fit is not None:
        fit = report.fit
        lines.append(
            f"global mix and token gate: fitted on {', '.join(fit['texts'])} ({fit['tokens']:,} tokens, "
            f"{fit['steps_done']} steps of {fit['batch_size']} × {fit['window']} tokens)"
        )
    if any(row.kind == "bound" for text in report.texts for row in text.rows):
        lines.append("oracle: of each token what the shard that gives it most gives it; no model can do that")
    if any(len({row.num_tokens for row in text.rows}) > 1 for text in report.texts):
        lines.append("a shard with another tokenizer is scored on its own tokens")
    return lines
