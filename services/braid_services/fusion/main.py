"""Starts a fusion service. Knows how its parts are put together, nothing of what they do."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES
from braid_rpc.errors import ConfigError, InvalidRequestError
from braid_services.fusion.backend import FusionBackend
from braid_services.fusion.servicer import FusionServicer
from braid_services.serving import RunningServer, start_server


def import_strategies(modules: Sequence[str]) -> None:
    """Import modules, so that the strategies they register can be named. Raises: ConfigError."""
    import_modules(modules, "fusion.imports")


def import_modules(modules: Sequence[str], key: str) -> None:
    """Import modules that a configuration names under ``key``. Raises: ConfigError."""
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"{key}: got {name!r}, expected a module that can be imported: {error}"
            ) from error


def serve_fusion(
    weights_dir: Path | str | None,
    version: str | None,
    targets: Sequence[str],
    threads: int = 1,
    *,
    imports: Sequence[str] = (),
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    max_publish_bytes: int | None = None,
) -> RunningServer:
    """Serve fusion modules on ``targets`` (``unix:/path``, ``host:port``) and return at once.

    The modules are built when an orchestrator sends its plan, with weights from ``weights_dir`` (None:
    untrained), of ``version`` (None: the newest). ``threads`` is torch's thread count in this process; 0 leaves
    it as it is.

    ``imports``: modules that register strategies of one's own. ``max_publish_bytes``: as `FusionBackend` has it.

    Raises: InvalidRequestError for threads below 0 or a malformed target, ConflictError for one that is taken,
    ConfigError for a module that can't be imported.
    """
    if threads < 0:
        raise InvalidRequestError(f"threads: got {threads}, expected 0 (torch's own choice) or more")
    if threads:
        torch.set_num_threads(threads)
    import_strategies(imports)
    backend = FusionBackend(weights_dir, version, max_publish_bytes)
    return start_server(
        [FusionServicer(backend, max_message_bytes)], targets, max_message_bytes=max_message_bytes
    )
