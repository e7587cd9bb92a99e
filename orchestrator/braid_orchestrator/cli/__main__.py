"""`python -m braid_orchestrator.cli`: what child processes are started with."""

from braid_orchestrator.cli.main import app

app(prog_name="braid")
