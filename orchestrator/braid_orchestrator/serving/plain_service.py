"""A braid on plain processes, no Ray: shards and fusion as children, engine, HTTP and gRPC in this process."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from braid_orchestrator.config.schema import Endpoints
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.http.app import create_app
from braid_orchestrator.serving.grpc_servicer import BraidServer
from braid_orchestrator.serving.metrics import MeteredService
from braid_orchestrator.serving.processes import ProcessSpec, Supervisor
from braid_orchestrator.serving.signals import STOP_SIGNALS, ended_by_signals
from braid_rpc.errors import ConflictError

_log = logging.getLogger(__name__)

# How long streams may go on after the signal to stop.
DRAIN_S = 5


def process_specs(config: BraidConfig, config_path: Path, sockets: Path) -> list[ProcessSpec]:
    """One child per shard, and one for the fusion modules where they are a service."""
    specs = [
        _spec(
            f"shard {shard.name!r}",
            ["shard", "--config", str(config_path), "--name", shard.name],
            f"unix:{sockets}/{index}.sock",
        )
        for index, shard in enumerate(config.shards)
    ]
    if config.fusion.placement == "service":
        specs.append(_spec("fusion", ["fusion", "--config", str(config_path)], f"unix:{sockets}/fusion.sock"))
    return specs


def _spec(name: str, arguments: list[str], target: str) -> ProcessSpec:
    command = (
        sys.executable,
        "-m",
        "braid_orchestrator.cli",
        *arguments,
        "--target",
        target,
        "--exit-with-parent",
    )
    return ProcessSpec(name, command, target)


def serve_plain(
    config: BraidConfig,
    config_path: Path,
    endpoints: Endpoints,
    *,
    ready_timeout_s: float,
    on_ready: Callable[[str, str], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then end every process. ``on_ready`` gets the HTTP URL and gRPC target.

    Raises: ConflictError for a port that is taken, ConfigError, UnknownModelError and all else that ends a start.
    """
    from braid_orchestrator.assembly import assemble_remote

    with (
        ended_by_signals(),
        _listen(endpoints) as http_socket,
        tempfile.TemporaryDirectory(prefix="braid-") as folder,
    ):
        specs = process_specs(config, config_path, Path(folder))
        with Supervisor(specs) as supervisor:
            supervisor.wait_ready(ready_timeout_s)
            resolvers = [lambda target=spec.target: target for spec in specs]
            shards = dict(zip((shard.name for shard in config.shards), resolvers, strict=False))
            fusion = resolvers[-1] if config.fusion.placement == "service" else None
            service = assemble_remote(config, shards, fusion)
            try:
                asyncio.run(_run(MeteredService(service), http_socket, endpoints, on_ready))
            finally:
                service.stop()


async def _run(
    service: MeteredService,
    http_socket: socket.socket,
    endpoints: Endpoints,
    on_ready: Callable[[str, str], None],
) -> None:
    app = create_app(lambda: service, service.render_metrics)
    http = _QuietServer(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_S)
    )
    rpc = BraidServer(lambda: service, [f"{endpoints.host}:{endpoints.grpc_port}"])
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, http.begin_exit)
    await rpc.start()
    try:
        on_ready(f"http://{endpoints.host}:{http_socket.getsockname()[1]}", rpc.targets[0])
        await http.serve(sockets=[http_socket])
    finally:
        await rpc.stop()


class _QuietServer(uvicorn.Server):
    """Leaves signals to us: they end the gRPC server and the children too."""

    def begin_exit(self) -> None:
        """Take no more requests; `serve` returns once the running ones are done."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


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
