"""`braid serve`: the whole braid on plain processes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from braid_orchestrator.cli.console import announce, err
from braid_orchestrator.cli.options import ConfigOption, StateOption, use_state
from braid_orchestrator.cli.parents import ExitWithParent, when_parent_ends
from braid_rpc.errors import ConfigError, UnknownShardError


def serve(
    config: ConfigOption = Path("deploy/braid.yaml"),
    host: Annotated[str | None, typer.Option(help="Address to listen on; else the file's.")] = None,
    http_port: Annotated[int | None, typer.Option(help="0 takes any free one; else the file's.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="0 takes any free one; else the file's.")] = None,
    ready_timeout: Annotated[float, typer.Option(help="Seconds that the models may take to load.")] = 600.0,
    shard: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TARGET",
            help="Where a shard runs already (`host:port`, `unix:/path`); repeatable. Others are started here.",
        ),
    ] = None,
    fusion: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Where the fusion service runs already.")
    ] = None,
    state: StateOption = None,
    join: Annotated[
        bool, typer.Option("--join", help="Start no parts: find in the state store what is not given.")
    ] = False,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Serve a braid on plain processes, without Ray, until Ctrl-C.

    Each shard and the fusion modules run in a process of their own and talk over unix sockets; one that dies
    is started again. Parts that run elsewhere are waited for and connected to. HTTP and gRPC answer at the
    addresses in the file.

    Examples:

    - `braid serve`

    - `braid serve --config my.yaml --http-port 8080`

    - `BRAID_SHARDS__CODE__DTYPE=bfloat16 braid serve`

    - `braid serve --shard code=10.0.0.5:7001 --shard prose=10.0.0.6:7001 --fusion 10.0.0.5:7100`

    - `braid serve --state redis://10.0.0.4:6379 --join`
    """
    from braid_orchestrator.config.files import locate_files
    from braid_orchestrator.config.schema import load_braid_config, load_endpoints
    from braid_orchestrator.config.values import FUSION
    from braid_orchestrator.serving.plain_service import serve_plain

    use_state(state)
    braid = load_braid_config(config, os.environ)
    names = [one.name for one in braid.shards]
    elsewhere = places_elsewhere(shard or [], fusion, names)
    if join and braid.state.store == "memory" and {*names, FUSION} - {*elsewhere}:
        raise ConfigError("--join: got no state store to find parts in, expected --state or state.url")
    braid = locate_files(braid, {*names, FUSION} if join else elsewhere)
    endpoints = load_endpoints(config)
    endpoints = replace(
        endpoints,
        host=endpoints.host if host is None else host,
        http_port=endpoints.http_port if http_port is None else http_port,
        grpc_port=endpoints.grpc_port if grpc_port is None else grpc_port,
    )
    if exit_with_parent:
        when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    status = err.status(
        f"waiting for {len(braid.shards)} shards: {', '.join(one.name for one in braid.shards)} …"
    )

    def on_ready(http_url: str, grpc_target: str) -> None:
        status.stop()
        announce(
            f"braid {braid.name!r} is ready: {http_url} (docs at {http_url}/docs), gRPC at {grpc_target}"
        )

    with status:
        serve_plain(
            braid,
            config,
            endpoints,
            ready_timeout_s=ready_timeout,
            on_ready=on_ready,
            elsewhere=elsewhere,
            join=join,
        )


def places_elsewhere(shards: list[str], fusion: str | None, known: list[str]) -> dict[str, str]:
    """Targets by part. Raises: ConfigError, UnknownShardError, InvalidRequestError for a malformed target."""
    from braid_orchestrator.config.values import FUSION
    from braid_rpc.channels import check_target

    targets: dict[str, str] = {}
    for given in shards:
        name, equals, target = given.partition("=")
        if not equals:
            raise ConfigError(
                f"--shard: got {given!r}, expected NAME=TARGET such as {known[0]}=10.0.0.5:7001"
            )
        if name not in known:
            raise UnknownShardError(f"--shard: got {name!r}, expected one of: {', '.join(known)}")
        if name in targets:
            raise ConfigError(f"--shard: got {name!r} a second time, expected one target each")
        targets[name] = check_target(target)
    if fusion is not None:
        targets[FUSION] = check_target(fusion)
    return targets
