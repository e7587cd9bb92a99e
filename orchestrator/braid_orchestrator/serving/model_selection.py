"""Which part of a braid a client means by ``model``: the braid itself, or one shard alone."""

from __future__ import annotations

from collections.abc import Sequence

from braid_rpc.errors import InvalidRequestError, UnknownModelError


def select_model(
    model: str | None, use_braiding: bool | None, shard: str | None, *, braid: str, shards: Sequence[str]
) -> tuple[bool, str | None]:
    """Resolve the three ways of naming a model to ``use_braiding`` and ``shard`` of a request.

    ``model`` empty or None is whatever is served. A shard's name stands for that shard alone.
    Raises: UnknownModelError; InvalidRequestError if the three contradict each other.
    """
    if model and model != braid:
        if model not in shards:
            raise UnknownModelError(
                f"model: got {model!r}, expected {braid!r} or one of the shards: {', '.join(shards)}"
            )
        if use_braiding:
            raise InvalidRequestError(
                f"use_braiding: got true for the shard {model!r}, expected false or nothing"
            )
        if shard and shard != model:
            raise InvalidRequestError(f"shard: got {shard!r}, expected {model!r} as in model, or nothing")
        return False, model
    return True if use_braiding is None else use_braiding, shard or None
