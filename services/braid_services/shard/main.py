"""Starting a shard: load the model, serve it. Used by the command line, by Ray Serve and by tests."""

from __future__ import annotations

from collections.abc import Sequence

from braid_services.serving import DEFAULT_MAX_CALLS, RunningServer, start_server
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.servicer import ShardServicer


def serve_shard(
    config: ShardConfig, targets: Sequence[str], *, max_calls: int = DEFAULT_MAX_CALLS
) -> RunningServer:
    """Load the model of ``config`` and serve it on ``targets`` (``host:port`` with port 0 for any free one, or
    ``unix:/path``). Returns once it answers; ``stop()`` ends it.

    Raises: UnknownModelError, CorruptWeightsError, UnsupportedModelError, ConfigError for the model;
    InvalidRequestError, ConflictError for the targets.
    """
    return serve_backend(ShardBackend.load(config), targets, max_calls=max_calls)


def serve_backend(
    backend: ShardBackend, targets: Sequence[str], *, max_calls: int = DEFAULT_MAX_CALLS
) -> RunningServer:
    """Serve a model that is loaded already; ``max_calls`` callers at most have a stream at the same time."""
    return start_server(
        [ShardServicer(backend)],
        targets,
        max_calls=max_calls,
        max_message_bytes=backend.config.max_message_bytes,
    )
