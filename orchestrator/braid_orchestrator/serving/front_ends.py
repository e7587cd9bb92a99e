"""HTTP and gRPC of one braid in one event loop, from start to end. Knows no shards and no signals."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from braid_orchestrator.http.app import create_app
from braid_orchestrator.serving.api_keys import ApiKeys
from braid_orchestrator.serving.connections import patient_protocol
from braid_orchestrator.serving.grpc_servicer import BraidServer
from braid_orchestrator.serving.metrics import MeteredService

# How long streams may go on after the signal to stop.
DRAIN_S = 5


class FrontEnds:
    """To be made and run in one event loop. ``keys`` None: nobody is asked for a key."""

    def __init__(
        self,
        service: MeteredService,
        http_socket: socket.socket,
        grpc_target: str,
        keys: ApiKeys | None = None,
    ) -> None:
        """Raises: UnavailableError if gRPC's address is taken."""
        app = create_app(
            lambda: service,
            service.render_metrics,
            get_keys=lambda: keys,
            count_response=service.count_response,
        )
        self._socket = http_socket
        self._http = _QuietServer(
            uvicorn.Config(
                app,
                http=patient_protocol(),
                log_config=None,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=DRAIN_S,
            )
        )
        self._rpc = BraidServer(lambda: service, [grpc_target], keys=keys)

    @property
    def grpc_target(self) -> str:
        """Where gRPC is answered: with the port that it got."""
        return self._rpc.targets[0]

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Answer until `begin_exit`, and on until the running requests are done."""
        await self._rpc.start()
        try:
            on_ready()
            await self._http.serve(sockets=[self._socket])
        finally:
            await self._rpc.stop()

    def begin_exit(self) -> None:
        """Take no more requests. From the loop's own thread."""
        self._http.should_exit = True


class _QuietServer(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
