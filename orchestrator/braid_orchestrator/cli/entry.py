"""Where the `braid` command begins. Imports nothing before a Ctrl-C would be told rather than traced."""

from __future__ import annotations

import sys


def run() -> None:
    """The command line, with the arguments of this process. Raises: SystemExit, always."""
    try:
        from braid_orchestrator.cli.main import app

        app(prog_name="braid")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before anything was done\n")
        sys.exit(130)
