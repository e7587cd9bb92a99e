"""Which part of a braid a client means by ``model``: the braid itself, or one shard alone."""

from __future__ import annotations

from collections.abc import Sequence

from braid_orchestrator.engine.requests import GenerateRequest, ScoreRequest, UseBraiding
from braid_rpc.errors import InvalidRequestError, UnknownModelError


def select_model(
    model: str | None, use_braiding: UseBraiding, shard: str | None, *, braid: str, shards: Sequence[str]
) -> tuple[UseBraiding, str | None]:
    """Resolve the three ways of naming a model to ``use_braiding`` and ``shard`` of a request.

    ``model`` empty or None is whatever is served. A shard's name stands for that shard alone. What is left open
    (None, "auto") stays so: `BraidPort.decide` settles it.
    Raises: UnknownModelError; InvalidRequestError if the three contradict each other.
    """
    if model and model != braid:
        if model not in shards:
            raise UnknownModelError(
                f"model: got {model!r}, expected {braid!r} or one of the shards: {', '.join(shards)}"
            )
        if use_braiding:
            raise InvalidRequestError(
                f"use_braiding: got {use_braiding!r} for the shard {model!r}, expected false or nothing"
            )
        if shard and shard != model:
            raise InvalidRequestError(f"shard: got {shard!r}, expected {model!r} as in model, or nothing")
        return False, model
    return use_braiding, shard or None


def answered_by(request: GenerateRequest | ScoreRequest, *, braid: str, anchor: str) -> str:
    """The name of who answers a request that is decided."""
    return braid if request.use_braiding else request.shard or anchor
