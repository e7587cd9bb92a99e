"""How the command line speaks: results to stdout, everything else to stderr, errors in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from typer.core import TyperGroup

from braid_fusion.strict_json import dump_json
from braid_rpc.errors import BraidError, InvalidRequestError, NotFoundError

out = Console()
err = Console(stderr=True)

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def print_json(value: Any) -> None:
    """One JSON object on stdout, for programs to read; null for figures that are not finite."""
    sys.stdout.write(dump_json(value, ensure_ascii=False, indent=2) + "\n")


def tell_left_out(line: str) -> None:
    """What of the texts that were named is not taken."""
    err.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)


def announce(line: str) -> None:
    """A line that a program may be waiting for: it leaves at once, and is never wrapped."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextmanager
def interruption_told(what: Callable[[], str]) -> Iterator[None]:
    """Within it, Ctrl-C ends the command with one line, which ends in ``what`` is to be said of it then."""
    try:
        yield
    except KeyboardInterrupt as error:
        err.print(f"interrupted: {what()}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from error


def exit_code(error: BraidError) -> int:
    """2 if the user has to change what was asked for, 1 if the world has to."""
    return BAD_INPUT if isinstance(error, InvalidRequestError | NotFoundError) else FAILED


class ErrorsInOneLine(TyperGroup):
    """Ends a command that raised a `BraidError` with its message and an exit code, never with a traceback; and one
    that Ctrl-C ended without its saying anything with a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BraidError as error:
            err.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True, highlight=False)
            raise typer.Exit(exit_code(error)) from error
        except KeyboardInterrupt as error:
            err.print("interrupted")
            raise typer.Exit(INTERRUPTED) from error


def log_to_stderr() -> None:
    """Warnings and worse, for people; ``BRAID_LOG_LEVEL`` asks for more, ``BRAID_LOG_FORMAT`` for JSON."""
    from braid_orchestrator.logs import configure_logs

    configure_logs(os.environ, RichHandler(console=err, show_path=False, show_time=True))
