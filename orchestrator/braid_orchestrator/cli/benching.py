"""What all benchmarks of the command line share: their options, their progress bar, and how they show a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from braid_orchestrator.cli.console import err, interruption_told, out, print_json
from braid_orchestrator.pictures import check_plotting
from braid_orchestrator.writable import check_file
from braid_rpc.errors import StorageError

if TYPE_CHECKING:
    from braid_orchestrator.bench.report import Report

# What is being done, how much of it is, and how much there is.
ProgressFunction = Callable[[str, int, int], None]

MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Markdown, for a document.")]
QuickOption = Annotated[
    bool,
    typer.Option("--quick", help="Small models and few rounds: shows that it works, not how fast it is."),
]


def show(report: Report, as_json: bool, markdown: bool) -> None:
    if as_json:
        print_json(report.to_dict())
    elif markdown:
        out.file.write(report.to_markdown())
    else:
        report.print(out)


def carry_out(
    run: Callable[[ProgressFunction], Report],
    draw: Callable[[Report, Path], None],
    *,
    kept: str,
    plot: Path | None,
    as_json: bool,
    markdown: bool,
) -> None:
    """A benchmark of hours: where its picture goes is looked at first; the report is shown before it is drawn.

    Args:
        kept: what is left of it where Ctrl-C ends it, as a clause.

    Raises: ConfigError without matplotlib; StorageError for a picture that has nowhere to go; what ``run`` raises.
    """
    if plot is not None:
        check_plotting()
        with _picture_errors():
            check_file(plot)
    with interruption_told(lambda: kept), progress_bar() as progress:
        report = run(progress)
    show(report, as_json, markdown)
    if plot is not None:
        with _picture_errors():
            draw(report, plot)


@contextmanager
def _picture_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"plot: cannot be written: {error}") from error


@contextmanager
def progress_bar() -> Iterator[ProgressFunction]:
    """What a command tells of its progress, as a bar on stderr that goes away at the end; nothing, not even an empty
    line, where that is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield progress
