"""Whole programs under test: their configuration, their start, what they leave behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from models import save_tiny_model

MARK = "TEST_PROGRAM_MARK"


def tiny_braid_settings(folder: Path) -> dict[str, Any]:
    """Two saved models of different shapes, two fusion points, a gate."""
    return {
        "name": "tiny",
        "anchor": "left",
        "shards": [
            {"name": "left", "model": str(save_tiny_model(folder / "left", 1)), "cache_bytes": "4MiB"},
            {
                "name": "right",
                "model": str(save_tiny_model(folder / "right", 2, width=48, num_layers=4)),
                "cache_bytes": "4MiB",
            },
        ],
        "points": [{"at": 0.4, "strategy": "mlp"}, {"at": 0.7, "strategy": "router"}],
        "readout": "gate",
        # A killed shard has to import torch again, on a machine that may be busy.
        "limits": {"recovery_timeout_s": 120},
    }


def write_serve_file(path: Path, settings: dict[str, Any], http_port: int, grpc_port: int) -> Path:
    """The same as a file for Ray Serve, every part with a sliver of a CPU."""
    parts = [*(shard["name"] for shard in settings["shards"]), "fusion", "orchestrator"]
    document = {
        "http_options": {"host": "127.0.0.1", "port": http_port},
        "grpc_options": {
            "port": grpc_port,
            "grpc_servicer_functions": ["braid_rpc.v1.braid_pb2_grpc.add_BraidServicer_to_server"],
        },
        "applications": [
            {
                "name": "braid",
                "route_prefix": "/",
                "import_path": "braid_orchestrator.serve_app:build",
                "args": settings,
                "deployments": [{"name": part, "ray_actor_options": {"num_cpus": 0.1}} for part in parts],
            }
        ],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait until something holds; fail, naming it, if it doesn't in time."""
    give_up_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


class Program:
    """A command that is running, and all processes that came of it: they inherit a mark in their environment."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self._mark = uuid4().hex
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, MARK: self._mark, **environment},
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until(self, holds: Callable[[], bool], timeout_s: float, what: str) -> None:
        def holds_or_dead() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output()}"
            return holds()

        try:
            eventually(holds_or_dead, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()[-3000:]}") from None

    def pids(self) -> list[int]:
        """Of every process that has the mark, the program's own included."""
        marked = f"{MARK}={self._mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    if marked in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
                except OSError:
                    continue  # it has just ended
        return found

    def stop(self, number: int, timeout_s: float) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def clean_up(self) -> None:
        """Whatever a failed test left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
