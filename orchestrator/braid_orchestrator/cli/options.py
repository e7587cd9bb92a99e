"""Options that several commands share."""

from __future__ import annotations

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
DEFAULT_TARGET = "http://127.0.0.1:8000"
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of text for humans.")]
