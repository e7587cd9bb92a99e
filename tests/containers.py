"""A compose project under test: its own name, ports and models; what its containers say; and its end."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from braids import shaken_weights
from models import save_tiny_model

from braid_orchestrator.config.schema import load_braid_config
from braid_orchestrator.config.values import BraidConfig
from braid_services.shard.backend import ShardBackend

DEPLOY = Path(__file__).parents[1] / "deploy"
COMMAND_S = 120.0


def why_no_engine() -> str | None:
    """Why no container can be run here; None if one can."""
    if shutil.which("docker") is None:
        return "needs docker, which is not installed"
    for command in (["docker", "compose", "version"], ["docker", "info"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        if done.returncode:
            return f"needs a container engine: `{' '.join(command)}` fails"
    return None


def save_demo(folder: Path) -> BraidConfig:
    """What `make demo` builds, small and with random weights; the configuration has the paths of it here.

    Anybody may read it: the containers' user is not the one who runs the tests.
    """
    shapes = {"code": {"num_layers": 4}, "prose": {"num_layers": 6, "width": 48}}
    environment = {"BRAID_FUSION__WEIGHTS": str(folder / "fusion")}
    for seed, (name, shape) in enumerate(shapes.items()):
        environment[f"BRAID_SHARDS__{name.upper()}__MODEL"] = str(
            save_tiny_model(folder / name, seed, **shape)
        )
    config = load_braid_config(DEPLOY / "braid.yaml", environment)
    shaken_weights(config, [ShardBackend.load(shard) for shard in config.shards], folder / "fusion")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return config


class Compose:
    """A project of deploy/compose.yaml with a name of its own. ``settings`` are the variables that the file takes."""

    def __init__(self, **settings: str) -> None:
        project = {"COMPOSE_PROJECT_NAME": f"braid-{uuid4().hex[:8]}"}
        self._environment = {**os.environ, **settings, **project}

    def shell(self, command: str, timeout_s: float = COMMAND_S) -> str:
        """The output of a command as a document shows it; fails with everything that it said if it does."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=DEPLOY.parent,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        said = f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{said}"
        return done.stdout

    def run(self, *arguments: str, timeout_s: float = COMMAND_S) -> str:
        """The same for a compose command."""
        return self.shell(
            shlex.join(["docker", "compose", "--file", "deploy/compose.yaml", *arguments]), timeout_s
        )

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers, the oldest first."""
        return self.run("ps", "--quiet", service).split()[::-1]

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine knows of a container."""
        done = subprocess.run(
            ["docker", "inspect", container], capture_output=True, check=True, timeout=COMMAND_S
        )
        (found,) = json.loads(done.stdout)
        return dict(found)

    def python(self, container: str, code: str) -> str:
        """What a program prints that runs in a container."""
        command = ["docker", "exec", container, "python", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMMAND_S)
        return done.stdout

    def kill(self, container: str) -> None:
        """At once and for good."""
        subprocess.run(["docker", "kill", container], capture_output=True, check=True, timeout=COMMAND_S)

    def print_logs(self) -> None:
        """What the containers wrote, for whoever reads a failed test's output."""
        sys.stderr.write(self.run("ps", "--all") + self.run("logs", "--no-color", "--tail", "100"))
