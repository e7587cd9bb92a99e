"""The demo's models as shard services of their own, for as long as the fusion modules are trained against them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from braid_orchestrator.child_command import child_command
from braid_orchestrator.serving.processes import ProcessSpec, Supervisor
from braid_services.shard.config import ShardConfig

READY_TIMEOUT_S = 180.0
_SETTINGS = "BRAID_"  # of a braid that is served; these shards are nobody else's


@contextmanager
def shard_services(shards: Sequence[ShardConfig], log: Path) -> Iterator[dict[str, str]]:
    """Run `braid shard` for each, on a socket of its own; what they say goes to ``log``.

    Yields: their gRPC targets by name, all of them ready.
    Raises: BraidError, UnavailableError for one that doesn't start.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    with tempfile.TemporaryDirectory(prefix="braid-") as folder:
        specs = [
            ProcessSpec(
                f"shard {shard.name!r}",
                _command(shard, f"unix:{folder}/{index}.sock"),
                f"unix:{folder}/{index}.sock",
                log,
                environment,
            )
            for index, shard in enumerate(shards)
        ]
        with Supervisor(specs) as supervisor:
            supervisor.wait_ready(READY_TIMEOUT_S)
            yield {shard.name: spec.target for shard, spec in zip(shards, specs, strict=True)}


def _command(shard: ShardConfig, target: str) -> tuple[str, ...]:
    options = {
        "--name": shard.name,
        "--model": shard.model,
        "--dtype": shard.dtype,
        "--device": shard.device,
        "--threads": str(shard.threads or 1),
        "--target": target,
    }
    if shard.quantization:
        options["--quantization"] = shard.quantization
    given = [part for option in options.items() for part in option]
    return child_command("shard", *given)
