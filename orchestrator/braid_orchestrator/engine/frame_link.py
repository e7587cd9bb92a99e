"""How states travel between the engine and one shard: what is sent back to it, and in which format.

A shard keeps the states that it gave out, so they need not travel back. Where nothing was changed, the engine says
just that; where frames are narrower than the shard's own dtype, it sends the update, which the shard adds to its
own, exact, states. So what fusion does not change loses nothing by the journey: an untrained braid equals its
anchor whatever the format, and a trained one is off by the rounding of its updates, not of its states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from braid_rpc.cards import ShardCard
from braid_rpc.frames import check_frames, frame_code, is_narrower
from braid_rpc.steps import SpanStep
from braid_rpc.v1 import shard_pb2, tensor_pb2
from braid_services.frames import decode_frame, put_frame
from braid_services.tensors import put_torch


class FrameLink:
    """One shard's connection. ``frames`` is a format of `braid_rpc.frames`; None: the shard's dtype."""

    def __init__(self, key: str, frames: str | None, card: ShardCard) -> None:
        """``key``: of the configuration. Raises: ConfigError if the shard does not take these frames."""
        check_frames(key, frames, card.frames)
        self._narrow = frames if is_narrower(frames, card.dtype) else None
        self._keeps_states = bool(card.frames)  # an older shard wants its states back
        self._formats = (card.dtype, *card.frames)
        self._dtype: torch.dtype = getattr(torch, card.dtype)
        self._given: Tensor | None = None
        self._given_at = (-1, -1)

    def put_states(self, step: SpanStep[Tensor], message: shard_pb2.Step) -> None:
        """Write the states of a step, and what is wanted in return. Raises: FrameError."""
        if self._narrow is not None:
            message.frames = frame_code(self._narrow)
        hidden_TD = step.hidden
        given_TD = self._given if self._given_at == (step.step_id, step.start_layer) else None
        self._given, self._given_at = None, (step.step_id, step.end_layer)
        if hidden_TD is None:
            return
        if hidden_TD is given_TD and self._keeps_states:
            message.unchanged = True
        elif self._narrow is None or given_TD is None or given_TD.shape != hidden_TD.shape:
            put_torch(hidden_TD.to(self._dtype), message.hidden)
        else:
            update_TD = hidden_TD - given_TD
            if bool(update_TD.any()):
                put_frame(update_TD, self._narrow, message.update)
            else:
                message.unchanged = True

    def take_states(self, message: tensor_pb2.Tensor, max_bytes: int) -> Tensor:
        """The states of a reply: in the shard's dtype, or float32 if they came narrower.

        Raises: FrameError, ShapeMismatchError.
        """
        hidden = decode_frame(message, formats=self._formats, max_bytes=max_bytes, what="frame.hidden")
        if self._narrow is not None:
            hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        self._given = hidden
        return hidden
