"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="BRAID_CONFIG", help="A Ray Serve file or a bare braid file."),
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        envvar="BRAID_TARGET",
        help="A running braid: `http://host:port`, or gRPC as `host:port` or `unix:/path`.",
    ),
]
# What every random generator takes.
MAX_SEED = 2**63 - 1
DEFAULT_TARGET = "http://127.0.0.1:8000"
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of text for humans.")]
StateOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The Redis in which the parts of a braid find each other; else the file's."
    ),
]


def use_state(url: str | None) -> None:
    """What ``--state`` says counts for this process and for all that it starts."""
    if url is not None:
        os.environ["BRAID_STATE__STORE"] = "redis"
        os.environ["BRAID_STATE__URL"] = url
