"""The `braid` command and its subcommands."""

from __future__ import annotations

import typer

from braid_orchestrator.cli import (
    bench,
    demo,
    describe,
    evaluate,
    generate,
    health,
    parts,
    serve,
    train,
    train_decider,
)
from braid_orchestrator.cli.console import ErrorsInOneLine, log_to_stderr

app = typer.Typer(
    name="braid",
    cls=ErrorsInOneLine,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def braid() -> None:
    """Several language models run in lock step, exchange hidden states, and answer as one.

    A first look, on any machine with two cores:

    - `braid demo` builds two small models, serves their braid, and compares them

    Serving, once there is a configuration:

    - `serve run deploy/braid.yaml` on Ray, or `braid serve` on plain processes

    - `braid describe`, then `braid generate "def add(a, b):"` against either
    """
    log_to_stderr()


app.command(rich_help_panel="Serve")(serve.serve)
app.command(rich_help_panel="Serve")(parts.shard)
app.command(rich_help_panel="Serve")(parts.fusion)
app.command(rich_help_panel="Ask")(generate.generate)
app.command(rich_help_panel="Ask")(describe.describe)
app.command(rich_help_panel="Ask")(health.health)
app.command(rich_help_panel="Train")(train.train)
app.command("eval", rich_help_panel="Train")(evaluate.evaluate)
app.command(rich_help_panel="Train")(train_decider.train_decider)
app.command(rich_help_panel="Try")(demo.demo)
app.add_typer(bench.app, name="bench", rich_help_panel="Try")
