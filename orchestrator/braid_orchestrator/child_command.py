"""How a program starts a `braid` command that ends when the program does, however it ends."""

from __future__ import annotations

import sys


def child_command(*arguments: str) -> tuple[str, ...]:
    """For a process whose standard input is a pipe that nobody writes to: the end of it is the end of the command."""
    return (sys.executable, "-m", "braid_orchestrator.cli", *arguments, "--exit-with-parent")
