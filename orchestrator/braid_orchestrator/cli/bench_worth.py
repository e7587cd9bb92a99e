"""`braid bench worth`: whether braiding is worth its cost, one subcommand per experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, Self, TypeVar

import typer

from braid_orchestrator.cli.benching import MarkdownOption, ProgressFunction, QuickOption, carry_out
from braid_orchestrator.cli.options import JsonOption

if TYPE_CHECKING:
    from braid_orchestrator.bench.report import Report

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

SeedOption = Annotated[
    list[int] | None,
    typer.Option(help="Seeds of starts and orders; may be given again. Without it, 0, 1 and 2."),
]
WorkOption = Annotated[
    Path,
    typer.Option(
        file_okay=False, help="Keeps models and results of finished runs; those in it are not run again."
    ),
]
PlotOption = Annotated[Path | None, typer.Option(dir_okay=False, help="Where to put a picture (PNG).")]


class Mix(StrEnum):
    """What text is mixed from code and prose."""

    MODULES = "modules"
    PARTS = "parts"


class PartnerTokenizer(StrEnum):
    """How a pretrained model's partner reads."""

    BPE = "bpe"
    BYTES = "bytes"


class Variant(StrEnum):
    """What arithmetic over keys is about."""

    PLAIN = "plain"
    LARGER = "larger"
    TOKENIZERS = "tokenizers"


class Quickened(Protocol):
    """An experiment's options."""

    def quick(self) -> Self:
        """The same experiment in little."""


OptionsT = TypeVar("OptionsT", bound=Quickened)


def _seeds(given: list[int] | None) -> tuple[int, ...]:
    return tuple(dict.fromkeys(given or (0, 1, 2)))


def _carry_out(
    run: Callable[[OptionsT, Path, ProgressFunction], Report],
    draw: Callable[[Report, Path], None],
    options: OptionsT,
    *,
    work: Path,
    plot: Path | None,
    quick: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """Run an experiment as its command was asked to, and show what it found."""
    if quick:
        options, work = options.quick(), work / "quick"
    carry_out(
        lambda progress: run(options, work, progress),
        draw,
        kept=f"runs that were finished are in {work}, from which the same command goes on",
        plot=plot,
        as_json=as_json,
        markdown=markdown,
    )


@app.callback()
def worth() -> None:
    """Is braiding worth its cost? Each experiment sets a braid beside everything simpler that could do its work.

    All that learn have the same data and as many steps. `keys` trains its models from nothing on exercises that it
    makes, `specialists` on the text of this Python installation; `pretrained` takes one that there is.
    """


@app.command()
def specialists(
    seed: SeedOption = None,
    work: WorkOption = Path(".braid/worth/specialists"),
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

    Many runs per seed, each of some minutes; the report says how long each took. With `--quick` tiny ones,
    without meaning.
    """
    from braid_orchestrator.bench.worth.contest_plot import plot_contest
    from braid_orchestrator.bench.worth.specialist_report import ROWS
    from braid_orchestrator.bench.worth.specialist_runs import SpecialistRecipe
    from braid_orchestrator.bench.worth.specialist_texts import TEXTS, TextRecipe
    from braid_orchestrator.bench.worth.specialists import SpecialistOptions, run_specialists

    _carry_out(
        run_specialists,
        partial(plot_contest, rows=ROWS, texts=TEXTS),
        SpecialistOptions(_seeds(seed), SpecialistRecipe(texts=TextRecipe(mix=mix.value))),
        work=work,
        plot=plot,
        quick=quick,
        as_json=as_json,
        markdown=markdown,
    )


@app.command()
def pretrained(
    anchor: Annotated[
        Path,
        typer.Option(exists=True, file_okay=False, resolve_path=True, help="A pretrained Llama's folder."),
    ],
    text: Annotated[
        Path,
        typer.Option(
            exists=True,
            resolve_path=True,
            help="What it knows: a file or folder. In a file, lines of `<|endoftext|>` end documents.",
        ),
    ],
    tokenizer: Annotated[
        PartnerTokenizer,
        typer.Option(
            help="The partner's: byte pairs (`bpe`), or `bytes` alone, which wait for no word's end."
        ),
    ] = PartnerTokenizer.BPE,
    seed: SeedOption = None,
    work: WorkOption = Path(".braid/worth/pretrained"),
    plot: PlotOption = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """A pretrained model and a partner with another tokenizer, on text that mixes what both know.

    The partner is trained from nothing on the prose of this Python installation. The figures to look at are those of
    `specialists`: the braid against the *token gate* and the *no-cross controls*. `--seed 0` runs one seed, and a
    command that was ended goes on where it was:

    `braid bench worth pretrained --anchor models/stories260K --text stories.txt --plot worth.png --json > worth.json`

    A dozen runs per seed, each of some minutes; the report says how long each took. With `--quick` tiny ones,
    without meaning.
    """
    from braid_orchestrator.bench.worth.contest_plot import plot_contest
    from braid_orchestrator.bench.worth.pretrained import PretrainedOptions, run_pretrained
    from braid_orchestrator.bench.worth.pretrained_report import ROWS
    from braid_orchestrator.bench.worth.pretrained_runs import PretrainedRecipe
    from braid_orchestrator.bench.worth.pretrained_texts import TEXTS

    recipe = PretrainedRecipe()
    if tokenizer is PartnerTokenizer.BYTES:
        recipe = replace(recipe, partner=recipe.partner.reading_bytes())
    _carry_out(
        run_pretrained,
        partial(plot_contest, rows=ROWS, texts=TEXTS),
        PretrainedOptions(anchor, text, _seeds(seed), recipe),
        work=work,
        plot=plot,
        quick=quick,
        as_json=as_json,
        markdown=markdown,
    )


@app.command()
def keys(
    seed: SeedOption = None,
    work: WorkOption = Path(".braid/worth/keys"),
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

    A dozen runs per seed, each of some minutes; the report says how long each took. With `--quick` tiny ones,
    without meaning.
    """
    from braid_orchestrator.bench.worth.key_plot import plot_keys
    from braid_orchestrator.bench.worth.keys import VARIANTS, run_keys

    _carry_out(
        run_keys,
        plot_keys,
        replace(VARIANTS[variant.value], seeds=_seeds(seed)),
        work=work,
        plot=plot,
        quick=quick,
        as_json=as_json,
        markdown=markdown,
    )
