"""`braid bench`: benchmarks register here, one subcommand each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from braid_orchestrator.cli import bench_worth
from braid_orchestrator.cli.bench_graft import graft, graft_quality
from braid_orchestrator.cli.benching import MarkdownOption, QuickOption, progress_bar, show
from braid_orchestrator.cli.console import err
from braid_orchestrator.cli.options import JsonOption
from braid_rpc.errors import InvalidRequestError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def bench() -> None:
    """Measure what a braid costs and gains. Every benchmark prints a table, or one object with `--json`.

    The object holds all raw figures and, under `targets`, what was to be reached: `name`, `value`, `limit`, `met`.
    """


@app.command()
def step(
    tokens: Annotated[int | None, typer.Option(min=2, max=256, help="Tokens per side and round.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds that count; one more warms up.")] = None,
    strategy: Annotated[str, typer.Option(help="Fusion strategy at the four points.")] = "mlp",
    fusion_width: Annotated[int | None, typer.Option(min=1, help="Width in which states are fused.")] = None,
    readout: Annotated[str, typer.Option(help="Readout of (d), (e) and (f): `gate` or `mixture`.")] = "gate",
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """A decode step of two GPT-2-small shards: alone, at once without exchange, braided in process and over gRPC.

    Takes some minutes on two idle cores, and 8 GB of memory. With `--quick` half a minute, and no meaning.
    """
    from braid_orchestrator.bench.step import StepOptions, run_step

    _check_strategy(strategy)
    if readout not in ("gate", "mixture"):
        raise InvalidRequestError(f"readout: got {readout!r}, expected gate or mixture")
    options = StepOptions.quick() if quick else StepOptions()
    options = replace(
        options,
        tokens=tokens or options.tokens,
        rounds=rounds or options.rounds,
        strategy=strategy,
        fusion_width=fusion_width or options.fusion_width,
        readout=readout,
    )
    with progress_bar() as progress:
        report = run_step(options, progress)
    show(report, as_json, markdown)


@app.command()
def prefill(
    tokens: Annotated[int | None, typer.Option(min=16, max=1024, help="Length of the prompt.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds that count; one more warms up.")] = None,
    strategy: Annotated[str, typer.Option(help="Fusion strategy at the four points.")] = "mlp",
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """A long prompt read by two GPT-2-small shards: alone, at once without exchange, braided.

    Takes some minutes on two idle cores, and 8 GB of memory. With `--quick` half a minute, and no meaning.
    """
    from braid_orchestrator.bench.prefill import PrefillOptions, run_prefill

    _check_strategy(strategy)
    options = PrefillOptions.quick() if quick else PrefillOptions()
    options = replace(
        options,
        prompt_tokens=min(tokens or options.prompt_tokens, options.size.context - 2),
        rounds=rounds or options.rounds,
        strategy=strategy,
    )
    with progress_bar() as progress:
        report = run_prefill(options, progress)
    show(report, as_json, markdown)


@app.command()
def throughput(
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds that count; one more warms up.")] = None,
    readout: Annotated[str, typer.Option(help="`gate`, `mixture` or `anchor`.")] = "gate",
    strategy: Annotated[str, typer.Option(help="Fusion strategy at the four points.")] = "mlp",
    placement: Annotated[
        str, typer.Option(help="Where the fusion modules run: `embedded` or a `service`.")
    ] = "embedded",
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """A whole service asked over HTTP by 1, 4, 16 and 32 clients, beside its models with a static batch of 32.

    Takes five minutes on two idle cores, 8 GB of memory and 1 GB of disk. With `--quick` half a minute, and no
    meaning.
    """
    from braid_orchestrator.bench.throughput import ThroughputOptions, run_throughput

    _check_strategy(strategy)
    for name, value, known in (
        ("readout", readout, ("gate", "mixture", "anchor")),
        ("placement", placement, ("embedded", "service")),
    ):
        if value not in known:
            raise InvalidRequestError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    options = ThroughputOptions.quick() if quick else ThroughputOptions()
    options = replace(
        options,
        rounds=rounds or options.rounds,
        readout=readout,
        strategy=strategy,
        placement=placement,  # type: ignore[arg-type]
    )
    with progress_bar() as progress:
        report = run_throughput(options, progress)
    show(report, as_json, markdown)


@app.command()
def naive(
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds that count; one more warms up.")] = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """The braid beside the simplest way: every model over the whole text again for every token.

    Takes some minutes on two idle cores, and 6 GB of memory. With `--quick` half a minute, and no meaning.
    """
    from braid_orchestrator.bench.naive import NaiveOptions, run_naive

    options = NaiveOptions.quick() if quick else NaiveOptions()
    with progress_bar() as progress:
        report = run_naive(replace(options, rounds=rounds or options.rounds), progress)
    show(report, as_json, markdown)


@app.command()
def precision(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model's folder; may be given again. Without it, the demo's models if built."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A text file for bits per byte. Without it, prose that the demo held out."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds that count; one more warms up.")] = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Weights in float32, bfloat16, float16, int8 and nf4, and frames in every format: memory, speed, and cost.

    Takes some minutes, and 6 GB of memory. With `--quick` one minute, and no meaning.
    """
    from braid_orchestrator.bench.precision import (
        PrecisionOptions,
        demo_models,
        held_out_text,
        read_text,
        run_precision,
    )

    options = PrecisionOptions.quick() if quick else PrecisionOptions()
    options = replace(
        options,
        models=demo_models() if model is None else tuple(model),
        text=held_out_text() if text is None else read_text(text),
        rounds=rounds or options.rounds,
    )
    with progress_bar() as progress:
        report = run_precision(options, progress)
    show(report, as_json, markdown)


@app.command()
def train(
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds that count; one more warms up.")] = None,
    strategy: Annotated[str, typer.Option(help="Fusion strategy at the four points.")] = "mlp",
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """One optimisation step of fusion modules between two GPT-2-small shards: as services, and in process.

    Takes some minutes on two idle cores, and 8 GB of memory. With `--quick` half a minute, and no meaning.
    """
    from braid_orchestrator.bench.train import TrainOptions, run_train

    _check_strategy(strategy)
    options = TrainOptions.quick() if quick else TrainOptions()
    with progress_bar() as progress:
        report = run_train(replace(options, rounds=rounds or options.rounds, strategy=strategy), progress)
    show(report, as_json, markdown)


app.command()(graft)
app.command()(graft_quality)
app.add_typer(bench_worth.app, name="worth")


@app.command()
def render(
    result: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="What a benchmark printed with --json.")
    ],
    into: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="A document in which to replace the benchmark's table."
        ),
    ] = None,
    markdown: MarkdownOption = False,
) -> None:
    """Show a saved result, or put it into a document.

    `braid bench render step.json --into docs/benchmarks.md`
    """
    from braid_orchestrator.bench.report import Report, replace_section

    try:
        report = Report.from_dict(json.loads(result.read_text(encoding="utf-8")))
    except ValueError as error:  # no JSON, or no text at all
        raise InvalidRequestError(f"{result}: got no JSON, expected what --json prints: {error}") from error
    if into is None:
        show(report, as_json=False, markdown=markdown)
    else:
        replace_section(into, report)
        err.print(f"{into}: section {report.benchmark!r} replaced")


def _check_strategy(strategy: str) -> None:
    from braid_fusion.strategies.registry import strategy_names

    if strategy not in strategy_names():
        raise InvalidRequestError(
            f"strategy: got {strategy!r}, expected one of {', '.join(strategy_names())}"
        )
