"""`braid eval`: how well shards, mixes of their outputs, and the braid predict texts. Measures nothing itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from braid_fusion.strict_json import dump_json
from braid_orchestrator.cli.benching import progress_bar
from braid_orchestrator.cli.console import interruption_told, out, print_json, tell_left_out
from braid_orchestrator.cli.options import MAX_SEED, ConfigOption, StateOption
from braid_orchestrator.cli.reaching import JoinOption, ServeOption, ShardOption, use_state_to_join, way_to

if TYPE_CHECKING:
    from braid_orchestrator.evaluation import Report

_DATA, _HOW = "Texts", "Measuring"


def evaluate(
    text: Annotated[
        list[str],
        typer.Option(
            help="A text file, a folder, JSON lines (`text`, or `prompt` and `completion`), or a data set as "
            "`hf:NAME`; repeatable. Each gets a group of rows, and all together another.",
            rich_help_panel=_DATA,
        ),
    ],
    fit: Annotated[
        list[str] | None,
        typer.Option(
            help="Texts to fit the learned mixes on, as --text and none of those; repeatable. Without any, these "
            "baselines are left out.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="The field of JSON lines and data sets.", rich_help_panel=_DATA)
    ] = None,
    config: ConfigOption = Path("deploy/braid.yaml"),
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A version of fusion weights, such as `braid train` writes; else the active one with --join, else "
            "the file's.",
        ),
    ] = None,
    shard: ShardOption = None,
    join: JoinOption = False,
    state: StateOption = None,
    serve: ServeOption = None,
    window: Annotated[
        int, typer.Option(min=1, help="Tokens run as one sequence.", rich_help_panel=_HOW)
    ] = 128,
    batch_rows: Annotated[
        int, typer.Option(min=1, help="Tokens run at once, at most.", rich_help_panel=_HOW)
    ] = 2048,
    accuracy: Annotated[
        bool,
        typer.Option(
            help="Tell how often the likeliest token came; shards send their logits for it.",
            rich_help_panel=_HOW,
        ),
    ] = True,
    forgetting: Annotated[
        float,
        typer.Option(
            help="What the posterior mix keeps of its evidence with each token; 1: all.", rich_help_panel=_HOW
        ),
    ] = 1.0,
    fit_steps: Annotated[int, typer.Option(min=1, help="Of the learned mixes.", rich_help_panel=_HOW)] = 200,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.", rich_help_panel=_HOW)] = 1000,
    confidence: Annotated[float, typer.Option(help="Of the intervals.", rich_help_panel=_HOW)] = 0.95,
    unit: Annotated[
        str | None,
        typer.Option(
            metavar="window|document",
            help="What is drawn for the intervals; else documents where there are 30 of them, and windows otherwise.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=MAX_SEED,
            help="Of resamples, and of the order of texts to fit on.",
            rich_help_panel=_HOW,
        ),
    ] = 0,
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write all figures as JSON; `-`: to stdout, instead of the table."),
    ] = None,
    png: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw the figures.")] = None,
) -> None:
    """Compare each shard alone, mixes of the shards' probabilities, and their braid on texts: bits per byte and
    next-token accuracy, with bootstrap intervals.

    The shards run where they run: in this process, as services, on Ray; those that serve go on serving. Nobody should
    have been trained on the texts. The oracle takes for each token the shard that gives it most: a bound on
    choosing between outputs, no model.

    Examples:

    - `braid eval --text held-out/code --text held-out/prose.txt`

    - `braid eval --text test.jsonl --fit train.jsonl --weights .braid/training/weights/trained`

    - `braid eval --text test.txt --shard code=10.0.0.5:7001 --shard prose=10.0.0.6:7001 --no-accuracy`

    - `braid eval --text test.txt --json figures.json --png figures.png`
    """
    from braid_orchestrator.config.files import locate_files
    from braid_orchestrator.config.schema import load_braid_config
    from braid_orchestrator.config.values import FUSION
    from braid_orchestrator.evaluation import Cut, FitOptions, Resampling
    from braid_orchestrator.evaluation.job import EvaluationJob, do_evaluation
    from braid_orchestrator.pictures import check_plotting
    from braid_orchestrator.training.data import ReadingOptions

    _check_places(json, png)
    use_state_to_join(state, join)
    if png is not None:
        check_plotting()
    braid = load_braid_config(config, os.environ)
    way = way_to(braid, shard or [], join, serve)
    elsewhere = set() if way.loads_here else {one.name for one in braid.shards}
    if weights is not None or join:
        elsewhere.add(FUSION)
    job = EvaluationJob(
        config=locate_files(braid, elsewhere),
        way=way,
        texts=tuple(text),
        fit=tuple(fit or []),
        weights=weights,
        reading=ReadingOptions(field=field),
        cut=Cut(window, batch_rows, unit=unit),  # type: ignore[arg-type]
        resampling=Resampling(resamples, confidence, seed),
        fitting=FitOptions(steps=fit_steps, window=window, seed=seed),
        forgetting=forgetting,
        accuracy=accuracy,
    )
    with interruption_told(lambda: "there are no figures"), progress_bar() as show:
        report = do_evaluation(
            job,
            on_progress=show,
            on_left_out=tell_left_out,
        )
    _tell(report, json, png)


def _check_places(json: str | None, png: Path | None) -> None:
    """Before hours of measuring. Raises: StorageError for figures that have nowhere to go."""
    from braid_orchestrator.writable import check_file
    from braid_rpc.errors import StorageError

    for path in (None if json in (None, "-") else Path(str(json)), png):
        try:
            if path is not None:
                check_file(path)
        except OSError as error:
            raise StorageError(f"figures cannot be written: {error}") from error


def _tell(report: Report, json: str | None, png: Path | None) -> None:
    """The table first: files may turn out not to be writable all the same."""
    from braid_orchestrator.evaluation.plot import plot_report
    from braid_orchestrator.evaluation.table import report_table
    from braid_rpc.errors import StorageError

    if json == "-":
        print_json(report.to_dict())
    else:
        out.print(report_table(report))
    try:
        if json not in (None, "-"):
            path = Path(str(json))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                dump_json(report.to_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
            )
        if png is not None:
            plot_report(report, png)
    except OSError as error:
        raise StorageError(f"figures cannot be written: {error}") from error
