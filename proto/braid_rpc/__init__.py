"""The wire of Braid: messages, tensor codec, errors, channels and clients. Needs neither torch nor ray.

    from braid_rpc import BraidClient, ShardClient

The clients are loaded when they are first asked for, so that a service which needs only the codec stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from braid_rpc.errors import (
    BraidError,
    CacheFullError,
    CapacityError,
    ConfigError,
    ConflictError,
    ContextLengthError,
    CorruptWeightsError,
    DeadlineError,
    FrameError,
    InvalidRequestError,
    NotFoundError,
    ProtocolVersionError,
    QueueFullError,
    RequestCancelledError,
    ShapeMismatchError,
    StepOrderError,
    StorageError,
    UnavailableError,
    UnknownModelError,
    UnknownSessionError,
    UnknownShardError,
    UnknownVersionError,
    UnsupportedModelError,
    WeightMismatchError,
)
from braid_rpc.stability import StabilityOptions

if TYPE_CHECKING:
    from braid_rpc.braid_client import BraidClient
    from braid_rpc.braid_client_async import AsyncBraidClient
    from braid_rpc.fusion_client import FusionClient
    from braid_rpc.shard_client import ShardClient

_CLIENTS = {
    "AsyncBraidClient": "braid_rpc.braid_client_async",
    "BraidClient": "braid_rpc.braid_client",
    "FusionClient": "braid_rpc.fusion_client",
    "ShardClient": "braid_rpc.shard_client",
}

__all__ = [
    "AsyncBraidClient",
    "BraidClient",
    "BraidError",
    "CacheFullError",
    "CapacityError",
    "ConfigError",
    "ConflictError",
    "ContextLengthError",
    "CorruptWeightsError",
    "DeadlineError",
    "FrameError",
    "FusionClient",
    "InvalidRequestError",
    "NotFoundError",
    "ProtocolVersionError",
    "QueueFullError",
    "RequestCancelledError",
    "ShapeMismatchError",
    "ShardClient",
    "StabilityOptions",
    "StepOrderError",
    "StorageError",
    "UnavailableError",
    "UnknownModelError",
    "UnknownSessionError",
    "UnknownShardError",
    "UnknownVersionError",
    "UnsupportedModelError",
    "WeightMismatchError",
]


def __getattr__(name: str) -> Any:
    if name in _CLIENTS:
        return getattr(import_module(_CLIENTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
