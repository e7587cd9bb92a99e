"""A report as a table for people. Measures nothing."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from braid_orchestrator.evaluation.intervals import Estimate
from braid_orchestrator.evaluation.report import Figures, Report

_STYLES = {"shard": "", "baseline": "", "braid": "bold", "bound": "dim italic"}


def report_table(report: Report) -> Table:
    """All texts, one group of rows each; the best figure that somebody really has is bold."""
    has_accuracy = any(row.accuracy is not None for text in report.texts for row in text.rows)
    table = Table(
        title="bits per byte, lower is better" + (", and next-token accuracy" if has_accuracy else ""),
        caption="\n".join(_captions(report)),
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in ("bits per byte", "to best shard", "to braid"):
        table.add_column(name, justify="right", no_wrap=True)
    if has_accuracy:
        table.add_column("accuracy", justify="right", no_wrap=True)
    for text in report.texts:
        table.add_section()
        units = f"{text.num_units:,} {text.unit}{'' if text.num_units == 1 else 's'}"
        heading = [
            Text(text.name, "bold underline"),
            Text(f"{text.num_bytes:,} bytes", "dim"),
            Text(units, "dim"),
        ]
        table.add_row(*heading)
        best = min(row.bits_per_byte.value for row in text.rows if row.kind != "bound")
        for row in text.rows:
            table.add_row(*_cells(row, best))
    return table


def _cells(row: Figures, best: float) -> list[Text]:
    style = _STYLES[row.kind]
    is_best = row.kind != "bound" and row.bits_per_byte.value == best
    cells = [
        Text(f"  {row.name}{' (bound)' if row.kind == 'bound' else ''}", style),
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
