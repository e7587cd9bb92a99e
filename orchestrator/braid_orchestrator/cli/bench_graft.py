"""`braid bench graft` and `braid bench graft-quality`: what grafted resonance layers cost, and what they learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from braid_orchestrator.cli.benching import MarkdownOption, QuickOption, carry_out, progress_bar, show
from braid_orchestrator.cli.options import JsonOption


def graft(
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds that count; one more warms up.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Length of the text read at once.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, on every side.")] = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """A GPT-2-small model bare, and with the layers of each preset: forward, decode with a cache, memory.

    Takes some minutes on two idle cores, and 4 GB of memory. With `--quick` half a minute, and no meaning.
    """
    from braid_orchestrator.bench.graft import GraftOptions, run_graft

    options = GraftOptions.quick() if quick else GraftOptions()
    options = replace(
        options,
        rounds=rounds or options.rounds,
        text_tokens=min(tokens or options.text_tokens, options.size.context),
        threads=threads or options.threads,
    )
    with progress_bar() as progress:
        report = run_graft(options, progress)
    show(report, as_json, markdown)


def graft_quality(
    model: Annotated[
        list[str], typer.Option(help="Folder of a causal LM in the Hugging Face layout; may be given again.")
    ],
    text: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="A text in UTF-8 that the models know little about."),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Runs per way, each with its own start and order.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training, of 1,024 tokens.")] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate/--no-ablate", help="Also leave each component out once.")
    ] = True,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Where to put a picture (PNG).")] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Keeps each run's result (JSON lines); those in it are not run again."
        ),
    ] = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Frozen models learn a new text by grafted layers, by LoRA, and by an MLP adapter of the same size.

    The first nine tenths of the text train; of the rest, one half chooses learning rates, the other half is the
    test. Takes most of an hour on two idle cores. With `--quick` one minute, and no meaning.
    """
    from braid_orchestrator.bench.graft_plot import plot_graft_quality
    from braid_orchestrator.bench.graft_quality import QualityOptions, run_graft_quality

    options = QualityOptions(tuple(model), str(text), ablate=ablate, num_seeds=seeds)
    options = replace(options, num_steps=steps or options.num_steps)
    carry_out(
        lambda progress: run_graft_quality(options.quick() if quick else options, progress, runs),
        plot_graft_quality,
        kept="no run is kept" if runs is None else f"runs that were finished are in {runs}",
        plot=plot,
        as_json=as_json,
        markdown=markdown,
    )
