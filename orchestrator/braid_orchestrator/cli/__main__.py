"""`python -m braid_orchestrator.cli`: what child processes are started with."""

from braid_orchestrator.cli.entry import run

run()
