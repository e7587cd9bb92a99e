"""A real `redis-server` for tests: on a free port, without a disk, stopped and started as they like."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import redis
from programs import eventually, free_port

REDIS_SERVER = shutil.which("redis-server")
READY_S = 20.0


class RedisServer:
    """One server; what it knows is lost when it stops."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if REDIS_SERVER is None:
            pytest.skip("needs a redis-server (Debian: apt-get install redis-server), which is absent")
        command = [
            REDIS_SERVER,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self.answers, READY_S, "redis-server answers")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def client(self) -> redis.Redis:
        """To look at what lies there, and to put something foreign beside it."""
        return redis.Redis.from_url(self.url, socket_timeout=5.0)
