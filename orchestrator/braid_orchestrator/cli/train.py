"""`braid train`: the fusion modules of a braid, against its shards wherever they run. Knows no training loop."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from braid_orchestrator.cli.benching import progress_bar
from braid_orchestrator.cli.console import err, interruption_told, print_json, tell_left_out
from braid_orchestrator.cli.options import MAX_SEED, ConfigOption, JsonOption, StateOption
from braid_orchestrator.cli.reaching import (
    PLACES_PANEL,
    JoinOption,
    ServeOption,
    ShardOption,
    use_state_to_join,
    way_to,
)
from braid_rpc.errors import ConfigError

if TYPE_CHECKING:
    from braid_orchestrator.training.job import TrainingJob
    from braid_orchestrator.training.run import Outcome

_DATA, _RUN = "Texts", "Training"
_PRECISIONS = ("float32", "bf16")


def train(
    text: Annotated[
        list[str],
        typer.Option(
            help="A text file, a folder, JSON lines (`text`, or `prompt` and `completion`), or a data set as "
            "`hf:NAME`; repeatable.",
            rich_help_panel=_DATA,
        ),
    ],
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="Texts to evaluate on, as --text; repeatable.", rich_help_panel=_DATA),
    ] = None,
    held_out_share: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.5, help="Of each text, where none are held out by name.", rich_help_panel=_DATA
        ),
    ] = 0.05,
    field: Annotated[
        str | None, typer.Option(help="The field of JSON lines and data sets.", rich_help_panel=_DATA)
    ] = None,
    config: ConfigOption = Path("deploy/braid.yaml"),
    shard: ShardOption = None,
    join: JoinOption = False,
    state: StateOption = None,
    serve: ServeOption = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="That many train together, by Ray Train; a step then takes so many times the batches.",
            rich_help_panel=PLACES_PANEL,
        ),
    ] = 1,
    into: Annotated[
        Path, typer.Option(file_okay=False, help="The run's folder: checkpoints, log, plot, weights.")
    ] = Path(".braid/training"),
    version: Annotated[
        str, typer.Option(help="What the weights are called in the run's folder.")
    ] = "trained",
    publish: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Who gets the weights at the end and uses them for requests from then on: a running braid "
            "(`http://host:port`), or a fusion service (`host:port`, `unix:/path`).",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last checkpoint in the run's folder, bit for bit."),
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Where events for TensorBoard go; else into the run's folder, if tensorboardX is installed.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=_RUN)] = 500,
    window: Annotated[
        int, typer.Option(min=1, help="Tokens run as one sequence.", rich_help_panel=_RUN)
    ] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Windows run at once.", rich_help_panel=_RUN)] = 8,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches per step.", rich_help_panel=_RUN)] = 1,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="At its peak.", rich_help_panel=_RUN)] = 3e-3,
    precision: Annotated[
        str, typer.Option(metavar="float32|bf16", help="Of the fusion modules.", rich_help_panel=_RUN)
    ] = "float32",
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, help="In steps; else ten times.", rich_help_panel=_RUN)
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="In steps; else five times.", rich_help_panel=_RUN)
    ] = None,
    patience: Annotated[
        int,
        typer.Option(
            min=0, help="Evaluations without a gain after which to stop; 0: never.", rich_help_panel=_RUN
        ),
    ] = 3,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_SEED, help="Of the order of texts, and of dropout.", rich_help_panel=_RUN
        ),
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Train the fusion modules and the readout of a braid. Its base models stay as they are, to the last bit.

    It starts from untrained modules, whatever weights the file names. The shards run where they run: in this process,
    as services, on Ray; those that serve go on serving. Ctrl-C ends with a checkpoint, from which `--resume` goes on.

    Examples:

    - `braid train --text notes.txt --text src/ --steps 300`

    - `braid train --text data.jsonl --held-out test.jsonl --shard code=10.0.0.5:7001 --shard prose=10.0.0.6:7001`

    - `braid train --text hf:roneneldan/TinyStories --state redis://10.0.0.4:6379 --join`

    - `braid train --text notes.txt --serve braid --publish http://127.0.0.1:8000`
    """
    from braid_orchestrator.config.files import locate_files
    from braid_orchestrator.config.schema import load_braid_config
    from braid_orchestrator.config.values import FUSION
    from braid_orchestrator.training.data import ReadingOptions
    from braid_orchestrator.training.job import TrainingJob
    from braid_orchestrator.training.publishing import ask_target, publish_version
    from braid_orchestrator.training.run import RunOptions
    from braid_orchestrator.training.storing import what_is_left

    _check_precision(precision)
    use_state_to_join(state, join)
    braid = load_braid_config(config, os.environ)
    way = way_to(braid, shard or [], join, serve)
    job = TrainingJob(
        config=locate_files(
            braid, {FUSION} if way.loads_here else {FUSION, *(one.name for one in braid.shards)}
        ),
        way=way,
        texts=tuple(text),
        folder=into,
        held_out=tuple(held_out or []),
        held_out_share=held_out_share,
        reading=ReadingOptions(field=field),
        options=RunOptions(
            steps=steps,
            window=window,
            batch_size=batch,
            accumulate=accumulate,
            learning_rate=learning_rate,
            precision=precision,  # type: ignore[arg-type]
            evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every,
            patience=patience or None,
            seed=seed,
        ),
        version=version,
        resume=resume,
        tensorboard=tensorboard,
        publish_to=None if publish is None else ask_target(publish),
    )
    with interruption_told(lambda: what_is_left(into)):
        outcome = _carry_out(job, workers)
    if not json:
        _show(outcome)
    published = None
    try:
        if publish is not None and outcome.weights is not None:
            published = publish_version(outcome.weights, publish)
    finally:  # whoever doesn't take the weights, they are there
        if json:
            print_json(
                {
                    "published": None if published is None else asdict(published),
                    "weights": None if outcome.weights is None else str(outcome.weights),
                    "held_out": outcome.held_out,
                    "record": asdict(outcome.record),
                }
            )
    if published is not None and not json:
        err.print(f"published as {published.version}; active: {published.active_version}", highlight=False)


def _check_precision(name: str) -> None:
    """fp16's gradients need a CUDA device; the fusion modules are trained here, on the CPU, wherever shards are."""
    if name not in _PRECISIONS:
        raise ConfigError(f"--precision: got {name!r}, expected one of {', '.join(_PRECISIONS)}")


def _carry_out(job: TrainingJob, workers: int) -> Outcome:
    from braid_orchestrator.training.job import do_job
    from braid_services.fusion.translation import braid_errors

    if workers > 1:
        from braid_orchestrator.training.workers import do_job_with_workers

        return do_job_with_workers(job, workers, on_left_out=tell_left_out)
    with ExitStack() as reading, braid_errors():
        show = reading.enter_context(progress_bar())
        return do_job(
            job,
            on_reading=lambda what, done, total: show(f"reading {what}", done, total),
            on_read=reading.close,  # training has a bar of its own, and this one would take its stderr
            on_left_out=tell_left_out,
        )


def _show(outcome: Outcome) -> None:
    record = outcome.record
    if not record.steps:
        err.print("interrupted before the first step: nothing was trained", highlight=False)
        return
    err.print(
        f"{record.steps} steps in {record.seconds:.0f} s, ended by {record.stopped_by}; loss {record.final_loss:.3f} "
        "nats per token",
        highlight=False,
        soft_wrap=True,
    )
    if record.best_value is not None:
        err.print(f"held out: {record.best_value:.4f} at step {record.best_step}", highlight=False)
    said = (
        "no weights yet: go on with --resume" if outcome.weights is None else f"written to {outcome.weights}"
    )
    err.print(said, markup=False, highlight=False, soft_wrap=True)
