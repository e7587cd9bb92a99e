"""`braid bench worth`: whether braiding is worth its cost, one subcommand per experiment."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from braid_orchestrator.cli.benching import MarkdownOption, QuickOption, progress_bar, show
from braid_orchestrator.cli.options import JsonOption
from braid_orchestrator.pictures import check_plotting

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

SeedOption = Annotated[
    list[int] | None,
    typer.Option(help="Seeds of starts and orders; may be given again. Without it, 0, 1 and 2."),
]
PlotOption = Annotated[Path | None, typer.Option(dir_okay=False, help="Where to put a picture (PNG).")]


class Mix(StrEnum):
    """What text is mixed from code and prose."""

    MODULES = "modules"
    PARTS = "parts"


class Variant(StrEnum):
    """What arithmetic over keys is about."""

    PLAIN = "plain"
    LARGER = "larger"
    TOKENIZERS = "tokenizers"


@app.callback()
def worth() -> None:
    """Is braiding worth its cost? Each experiment sets a braid beside everything simpler that could do its work.

    All have the same data and about as many trained parameters. Models are trained from nothing on the text of this
    Python installation, so the experiments run anywhere.
    """


@app.command()
def specialists(
    seed: SeedOption = None,
    work: Annotated[
        Path,
        typer.Option(
            file_okay=False, help="Keeps models and results of finished runs; those in it are not run again."
        ),
    ] = Path(".braid/worth/specialists"),
    mix: Annotated[
        Mix,
        typer.Option(
            help="The mixed text: whole `modules` with their comments and docstrings, or alternating `parts` of "
            "different files."
        ),
    ] = Mix.MODULES,
    plot: PlotOption = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Two specialists, of code and of prose, on text that mixes both: braid, gates, ensembles, soup, LoRA.

    The figures to look at: the braid against the *token gate*, which weighs the specialists' probabilities and
    lets them tell each other nothing, and against the *no-cross controls*, the same modules with the connections
    between the models cut. `--seed 0` runs one seed, and a command that was ended goes on where it was:

    `braid bench worth specialists --plot worth.png --json > worth.json`

    Many runs per seed, each of some minutes; the report says how long each took. With `--quick` tiny ones, without
    meaning.
    """
    from braid_orchestrator.bench.worth.specialist_plot import plot_specialists
    from braid_orchestrator.bench.worth.specialist_runs import SpecialistRecipe
    from braid_orchestrator.bench.worth.specialist_texts import TextRecipe
    from braid_orchestrator.bench.worth.specialists import SpecialistOptions, run_specialists

    recipe = SpecialistRecipe(texts=TextRecipe(mix=mix.value))
    options = SpecialistOptions(recipe=recipe)
    if seed:
        options = replace(options, seeds=tuple(dict.fromkeys(seed)))
    if quick:
        options, work = options.quick(), work / "quick"
    if plot is not None:
        check_plotting()
    with progress_bar() as progress:
        report = run_specialists(options, work, progress)
    if plot is not None:
        plot_specialists(report, plot)
    show(report, as_json, markdown)


@app.command()
def keys(
    seed: SeedOption = None,
    work: Annotated[
        Path,
        typer.Option(
            file_okay=False, help="Keeps models and results of finished runs; those in it are not run again."
        ),
    ] = Path(".braid/worth/keys"),
    variant: Annotated[
        Variant,
        typer.Option(
            help="`larger`: three operands of three digits, 5,000 keys. `tokenizers`: the table reads pairs of "
            "letters as tokens, the calculator characters."
        ),
    ] = Variant.PLAIN,
    plot: PlotOption = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Arithmetic over keys: one model knows numbers by their keys, one calculates; only together they can do both.

    The figures to look at: expressions over keys, which neither model can answer, nor any mix of their outputs. The
    braid also has to keep what each model can do alone. `--seed 0` runs one seed, and a command that was ended goes
    on where it was:

    `braid bench worth keys --plot keys.png --json > keys.json`

    Ten runs per seed, each of some minutes; the report says how long each took. With `--quick` tiny ones, without
    meaning.
    """
    from braid_orchestrator.bench.worth.key_plot import plot_keys
    from braid_orchestrator.bench.worth.keys import VARIANTS, run_keys

    options = VARIANTS[variant.value]
    if seed:
        options = replace(options, seeds=tuple(dict.fromkeys(seed)))
    if quick:
        options, work = options.quick(), work / "quick"
    if plot is not None:
        check_plotting()
    with progress_bar() as progress:
        report = run_keys(options, work, progress)
    if plot is not None:
        plot_keys(report, plot)
    show(report, as_json, markdown)
