"""`braid health`: whether a part, or a whole braid, is well; for people, container engines and scripts."""

from __future__ import annotations

from typing import Annotated

import typer

from braid_orchestrator.cli.console import announce


def health(
    target: Annotated[
        str, typer.Argument(help="`host:port` or `unix:/path` by gRPC, `http://host:port` by HTTP.")
    ],
    ready: Annotated[
        bool, typer.Option("--ready", help="By HTTP: that every part of the braid answers, too.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that the answer may take.")] = 5.0,
) -> None:
    """Ask a shard, a fusion service or a braid whether it is well: exit code 0 if it is, 1 if not.

    Examples:

    - `braid health 127.0.0.1:7001`

    - `braid health http://127.0.0.1:8000 --ready`
    """
    from braid_orchestrator.serving.probing import probe, probe_http
    from braid_rpc.errors import InvalidRequestError

    if timeout <= 0:
        raise InvalidRequestError(f"--timeout: got {timeout:g}, expected a number of seconds above 0")
    if target.startswith(("http://", "https://")):
        probe_http(target, "/ready" if ready else "/health", timeout)
    elif ready:
        raise InvalidRequestError(
            f"--ready: got it with {target!r}, expected it with 'http://host:port' only"
        )
    else:
        probe(target, timeout)
    announce(f"{target} is well")
