"""`braid shard` and `braid fusion`: one part of a braid as a gRPC server of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from braid_orchestrator.cli.console import announce, err
from braid_orchestrator.cli.options import StateOption, use_state
from braid_orchestrator.cli.parents import ExitWithParent, when_parent_ends
from braid_rpc.errors import ConfigError, UnknownShardError

if TYPE_CHECKING:
    from braid_orchestrator.config.values import BraidConfig
    from braid_orchestrator.state.registry import ReplicaRecord
    from braid_services.serving import RunningServer
    from braid_services.shard.config import ShardConfig

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Take the settings from a braid's file.")
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", "-t", help="Where to listen: `host:port` (0: any free port) or `unix:/path`; repeatable."
    ),
]
Advertise = Annotated[
    str | None,
    typer.Option(metavar="TARGET", help="Where others reach it, if not at this machine's own address."),
]


def shard(
    model: Annotated[
        str | None, typer.Option(help="A folder in the Hugging Face layout, or a hub's name.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The shard's name; with --config, which one.")] = None,
    target: Targets = None,
    config: ConfigFile = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, mps, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Torch's threads; 0 leaves its own choice.")] = 1,
    cache: Annotated[str, typer.Option(help="Room for all keys and values.")] = "512MiB",
    quantization: Annotated[
        str | None, typer.Option(help="Hold the weights as int8 (8bit) or nf4 (4bit).")
    ] = None,
    state: StateOption = None,
    advertise: Advertise = None,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Serve one base model: open sessions, step spans of layers, read and inject hidden states.

    Examples:

    - `braid shard --model gpt2 --target 127.0.0.1:7001`

    - `braid shard --config deploy/braid.yaml --name code --target unix:/tmp/code.sock`

    - `braid shard --config deploy/braid.yaml --name code --target 0.0.0.0:7001 --state redis://10.0.0.4:6379`
    """
    from braid_orchestrator.config.schema import parse_shard_config

    use_state(state)
    if exit_with_parent:
        os.environ.setdefault("TQDM_DISABLE", "1")  # several children would write over each other's bars
    if config is not None:
        if model is not None:
            raise ConfigError("--model: got it together with --config, expected one of the two")
        settings = _load_shard(config, name)
    else:
        if model is None:
            raise ConfigError("--model: missing, expected a folder or a hub's name (or --config and --name)")
        settings = parse_shard_config(
            {
                "name": name or Path(model).name,
                "model": model,
                "dtype": dtype,
                "device": device,
                "threads": threads,
                "cache_bytes": cache,
                "quantization": quantization,
            }
        )
    from braid_services.shard.main import serve_shard

    with err.status(f"loading {settings.model} …"):
        server = serve_shard(settings, target or ["127.0.0.1:0"])
    from braid_orchestrator.state.lease import shard_record

    describe = shard_record(settings.name, server.targets, advertise)
    _serve(server, f"shard {settings.name!r}", exit_with_parent, _lease(config, describe))


def fusion(
    weights: Annotated[str | None, typer.Option(help="A folder of versions; without it, untrained.")] = None,
    version: Annotated[str | None, typer.Option(help="Which one to start with; else the newest.")] = None,
    target: Targets = None,
    config: ConfigFile = None,
    threads: Annotated[int, typer.Option(help="Torch's threads; 0 leaves its own choice.")] = 1,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", help="A module that registers strategies; may be given again."),
    ] = None,
    state: StateOption = None,
    advertise: Advertise = None,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Serve the fusion modules and the readout of one braid; an orchestrator sends the plan.

    Examples:

    - `braid fusion --weights .braid/demo/fusion --target 127.0.0.1:7100`

    - `braid fusion --config deploy/braid.yaml --target unix:/tmp/fusion.sock`

    - `braid fusion --config deploy/braid.yaml --target 0.0.0.0:7100 --state redis://10.0.0.4:6379`
    """
    from braid_services.fusion.main import serve_fusion

    use_state(state)
    max_publish_bytes = None
    if config is not None:
        from braid_orchestrator.config.files import locate_files

        braid = _load(config)
        settings = locate_files(braid, [shard.name for shard in braid.shards]).fusion
        weights, version, threads = settings.weights, settings.version, settings.threads
        imports, max_publish_bytes = [*settings.imports], settings.max_publish_bytes
    server = serve_fusion(
        weights,
        version,
        target or ["127.0.0.1:0"],
        threads,
        imports=imports or (),
        max_publish_bytes=max_publish_bytes,
    )
    from braid_orchestrator.config.values import FUSION
    from braid_orchestrator.state.lease import service_record

    describe = service_record(FUSION, server.targets, advertise)
    _serve(server, "fusion", exit_with_parent, _lease(config, describe))


def _load(path: Path) -> BraidConfig:
    from braid_orchestrator.config.schema import load_braid_config

    return load_braid_config(path, os.environ)


def _load_shard(path: Path, name: str | None) -> ShardConfig:
    """One shard's settings. The other parts' files may lie on other machines."""
    from braid_orchestrator.config.files import locate_files
    from braid_orchestrator.config.values import FUSION

    braid = _load(path)
    known = [shard.name for shard in braid.shards]
    if name not in known:
        raise UnknownShardError(f"--name: got {name!r}, expected one of: {', '.join(known)}")
    others = {FUSION, *known} - {name}
    return locate_files(braid, others).shards[known.index(name)]


def _lease(config: Path | None, describe: Callable[[], ReplicaRecord]) -> AbstractContextManager[object]:
    """Registers the part where the braid has a state store that others share."""
    from braid_orchestrator.config.schema import parse_state_config
    from braid_orchestrator.state.lease import Lease
    from braid_orchestrator.state.opening import open_store

    braid = _load(config) if config is not None else None
    settings = parse_state_config(os.environ) if braid is None else braid.state
    if settings.store == "memory":
        return nullcontext()
    store = open_store(settings, "braid" if braid is None else braid.name)
    return Lease(store, describe, settings.heartbeat_s, settings.expiry_s)


def _serve(
    server: RunningServer, name: str, exit_with_parent: bool, lease: AbstractContextManager[object]
) -> None:
    """Serve, registered, until SIGTERM, SIGINT or, for a supervised child, until the parent is gone."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    if exit_with_parent:
        when_parent_ends(over.set)
    else:
        announce(f"{name} is ready: {', '.join(server.targets)}")
    from braid_services.settling import settle

    settle()
    with server, lease:
        over.wait()
