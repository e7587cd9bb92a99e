"""A service started for the demo: by `serve run`, as a user would, or on plain processes; and stopped again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from braid_orchestrator.child_command import child_command
from braid_orchestrator.cli.console import err
from braid_orchestrator.config.schema import Endpoints
from braid_rpc.errors import BraidError, ConflictError, UnavailableError

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
_LOG_LINES = 15


@contextmanager
def running_service(config: Path, endpoints: Endpoints, log: Path, *, plain: bool) -> Iterator[None]:
    """The service of a configuration, ready on entry and gone on exit. What it prints goes to ``log``.

    Raises: ConflictError if its ports are taken, BraidError with the log's end if it doesn't come up.
    """
    for port in (endpoints.http_port, endpoints.grpc_port):
        _check_free(port)
    command = child_command("serve", "--config", str(config)) if plain else _ray_command(config)
    log.parent.mkdir(parents=True, exist_ok=True)
    # A cluster of its own unless told otherwise, and no statistics sent anywhere.
    environment = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", **os.environ}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,  # its end tells of ours
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            with err.status(
                f"starting: {' '.join([Path(command[0]).name, *command[1:]])} (its log: {log}) …"
            ):
                _wait_ready(process, f"http://127.0.0.1:{endpoints.http_port}/ready", log)
            yield
        finally:
            with err.status("shutting down …"):
                _stop(process)


def _ray_command(config: Path) -> tuple[str, ...]:
    return (str(Path(sys.executable).with_name("serve")), "run", str(config))


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ConflictError(f"port {port} is taken; is a braid served already? Expected it to be free")


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up_s = time.monotonic() + READY_TIMEOUT_S
    with httpx.Client(timeout=2.0, trust_env=False) as client:
        while time.monotonic() < give_up_s:
            if process.poll() is not None:
                raise BraidError(f"the service ended with exit code {process.returncode}:\n{_tail(log)}")
            try:
                if client.get(url).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
    raise UnavailableError(f"the service was not ready after {READY_TIMEOUT_S:g} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does; by force, with all its children, if that is not enough."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
