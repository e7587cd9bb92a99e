"""A braid on plain processes, no Ray: engine, HTTP and gRPC in this process; shards and fusion as its children,
or wherever they run already."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType

from braid_orchestrator.child_command import child_command
from braid_orchestrator.config.schema import Endpoints
from braid_orchestrator.config.values import FUSION, BraidConfig
from braid_orchestrator.serving.api_keys import ApiKeys
from braid_orchestrator.serving.connections import allow_many_files
from braid_orchestrator.serving.front_ends import FrontEnds
from braid_orchestrator.serving.metrics import MeteredService
from braid_orchestrator.serving.places import Places
from braid_orchestrator.serving.probing import wait_healthy
from braid_orchestrator.serving.processes import ProcessSpec, Supervisor
from braid_orchestrator.serving.signals import STOP_SIGNALS, ended_by_signals
from braid_orchestrator.state.opening import open_store
from braid_rpc.errors import ConflictError
from braid_services.settling import settle

_log = logging.getLogger(__name__)


def process_specs(
    config: BraidConfig, config_path: Path, sockets: Path, elsewhere: Collection[str] = ()
) -> dict[str, ProcessSpec]:
    """One child per shard, by its name, and one for the fusion modules (`FUSION`) where they are a service; none
    for the parts that run ``elsewhere``."""
    specs = {
        shard.name: _spec(
            f"shard {shard.name!r}",
            ["shard", "--config", str(config_path), "--name", shard.name],
            f"unix:{sockets}/{index}.sock",
        )
        for index, shard in enumerate(config.shards)
        if shard.name not in elsewhere
    }
    if config.fusion.placement == "service" and FUSION not in elsewhere:
        specs[FUSION] = _spec(
            "fusion", ["fusion", "--config", str(config_path)], f"unix:{sockets}/fusion.sock"
        )
    return specs


def _spec(name: str, arguments: list[str], target: str) -> ProcessSpec:
    return ProcessSpec(name, child_command(*arguments, "--target", target), target)


def serve_plain(
    config: BraidConfig,
    config_path: Path,
    endpoints: Endpoints,
    *,
    ready_timeout_s: float,
    on_ready: Callable[[str, str], None],
    elsewhere: Mapping[str, str] = MappingProxyType({}),
    join: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then end every process. ``on_ready`` gets the HTTP URL and gRPC target.

    ``elsewhere`` says where parts run that are not ours to start: shards by name, `FUSION` for the fusion
    modules. They are waited for as long as children are, and connected to again when they come back. With
    ``join`` no part is started: those not named there are found in the state store. With a store that others
    share, the replicas which they registered there are used beside the children.

    Raises: UnavailableError for a part that does not answer in time, ConflictError for a port that is taken,
    ConfigError, UnknownModelError and all else that ends a start.
    """
    import torch

    from braid_orchestrator.assembly import assemble_remote

    keys = ApiKeys.load(config.auth.api_keys_file, os.environ)
    allow_many_files()
    if config.fusion.threads:
        # Readout and embedded modules run in this process: by default on all cores, which the shards need.
        torch.set_num_threads(config.fusion.threads)
    with (
        ended_by_signals(),
        _listen(endpoints) as http_socket,
        tempfile.TemporaryDirectory(prefix="braid-") as folder,
    ):
        every_part = {*(shard.name for shard in config.shards), FUSION}
        specs = process_specs(config, config_path, Path(folder), every_part if join else elsewhere)
        with (
            Supervisor(list(specs.values())) as supervisor,
            closing(open_store(config.state, config.name)) as store,
        ):
            give_up_s = time.monotonic() + ready_timeout_s
            supervisor.wait_ready(ready_timeout_s)
            for target in elsewhere.values():
                wait_healthy(target, max(give_up_s - time.monotonic(), 0.0), supervisor.check_alive)
            targets = {**{name: spec.target for name, spec in specs.items()}, **elsewhere}
            places = Places(config, store, targets, fixed=elsewhere)
            places.wait(give_up_s, supervisor.check_alive)
            shared = None if config.state.store == "memory" else store
            service = assemble_remote(config, places.shards(), places.fusion(), shared)
            settle()
            try:
                asyncio.run(_run(MeteredService(service), http_socket, endpoints, keys, on_ready))
            finally:
                service.stop()


async def _run(
    service: MeteredService,
    http_socket: socket.socket,
    endpoints: Endpoints,
    keys: ApiKeys | None,
    on_ready: Callable[[str, str], None],
) -> None:
    fronts = FrontEnds(service, http_socket, f"{endpoints.host}:{endpoints.grpc_port}", keys)
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, fronts.begin_exit)
    url = f"http://{endpoints.host}:{http_socket.getsockname()[1]}"
    await fronts.run(lambda: on_ready(url, fronts.grpc_target))


@contextmanager
def _listen(endpoints: Endpoints) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server((endpoints.host, endpoints.http_port))
    except (OSError, OverflowError) as error:
        address = f"{endpoints.host}:{endpoints.http_port}"
        raise ConflictError(
            f"http port: cannot listen on {address}: {getattr(error, 'strerror', None) or error}"
        ) from None
    with listener:
        yield listener
