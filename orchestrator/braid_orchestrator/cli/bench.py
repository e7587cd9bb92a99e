"""`braid bench`: benchmarks register here, one subcommand each."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def bench() -> None:
    """Measure what a braid costs and gains. Every benchmark prints a table, or one object with `--json`.

    The object holds all raw figures and, under `targets`, what was to be reached: `name`, `value`, `limit`, `met`.
    """
