"""`braid serve`: the whole braid on plain processes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from braid_orchestrator.cli.console import announce, err
from braid_orchestrator.cli.options import ConfigOption


def serve(
    config: ConfigOption = Path("deploy/braid.yaml"),
    host: Annotated[str | None, typer.Option(help="Address to listen on; else the file's.")] = None,
    http_port: Annotated[int | None, typer.Option(help="0 takes any free one; else the file's.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="0 takes any free one; else the file's.")] = None,
    ready_timeout: Annotated[float, typer.Option(help="Seconds that the models may take to load.")] = 600.0,
) -> None:
    """Serve a braid on plain processes, without Ray, until Ctrl-C.

    Each shard and the fusion modules run in a process of their own and talk over unix sockets; one that dies
    is started again. HTTP and gRPC answer at the addresses in the file.

    Examples:

    - `braid serve`

    - `braid serve --config my.yaml --http-port 8080`

    - `BRAID_SHARDS__CODE__DTYPE=bfloat16 braid serve`
    """
    from braid_orchestrator.config.files import locate_files
    from braid_orchestrator.config.schema import load_braid_config, load_endpoints
    from braid_orchestrator.serving.plain_service import serve_plain

    braid = locate_files(load_braid_config(config, os.environ))
    endpoints = load_endpoints(config)
    endpoints = replace(
        endpoints,
        host=endpoints.host if host is None else host,
        http_port=endpoints.http_port if http_port is None else http_port,
        grpc_port=endpoints.grpc_port if grpc_port is None else grpc_port,
    )
    status = err.status(
        f"loading {len(braid.shards)} shards: {', '.join(shard.name for shard in braid.shards)} …"
    )

    def on_ready(http_url: str, grpc_target: str) -> None:
        status.stop()
        announce(
            f"braid {braid.name!r} is ready: {http_url} (docs at {http_url}/docs), gRPC at {grpc_target}"
        )

    with status:
        serve_plain(braid, config, endpoints, ready_timeout_s=ready_timeout, on_ready=on_ready)
