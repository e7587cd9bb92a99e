"""Hidden states as frames in one of the formats of `braid_rpc.frames`, with torch.

Shapes: T rows, D width, N blocks of a row, B numbers of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from braid_rpc.frames import (
    BLOCK,
    FRAME_FORMATS,
    SCALE_DIVISOR,
    SMALLEST_BLOCK,
    check_blocks,
    overflow,
)
from braid_rpc.tensor import DEFAULT_MAX_TENSOR_BYTES
from braid_rpc.v1 import tensor_pb2
from braid_services.tensors import decode_torch, put_torch


def put_frame(states_TD: Tensor, frames: str | None, message: tensor_pb2.Tensor) -> None:
    """Write states into an empty message, in a format of `FRAME_FORMATS`; None: in their own dtype.

    Raises: FrameError for finite numbers beyond float16's range.
    """
    if frames == "int8":
        _put_blocks(states_TD.detach().cpu(), message)
    elif frames is None:
        put_torch(states_TD, message)
    else:
        narrow_TD = states_TD.to(getattr(torch, frames))
        if frames == "float16" and states_TD.dtype is not torch.float16:
            infinite_TD = narrow_TD.isinf()
            if infinite_TD.any() and bool((infinite_TD & states_TD.isfinite()).any()):
                raise overflow()
        put_torch(narrow_TD, message)


def decode_frame(
    message: tensor_pb2.Tensor,
    *,
    formats: Sequence[str] = FRAME_FORMATS,
    shape: Sequence[int | None] = (None, None),
    max_bytes: int = DEFAULT_MAX_TENSOR_BYTES,
    what: str = "frame",
) -> Tensor:
    """The states (T, D) that ``message`` carries, on the CPU, float32 if they came as int8.

    Args: as for `braid_rpc.frames.decode_frame`.
    Raises: FrameError, ShapeMismatchError, naming what was got and what was expected.
    """
    if message.dtype != tensor_pb2.DTYPE_INT8:
        return decode_torch(message, dtypes=formats, shape=shape, max_bytes=max_bytes, what=what)
    (num_rows, width), data, scales = check_blocks(
        message, formats=formats, shape=shape, max_bytes=max_bytes, what=what
    )
    if not data:
        return torch.empty(num_rows, width)
    # The arrays are read-only views of the message's bytes; the product is the tensor's own.
    quantized_TD = np.ndarray((num_rows, width), np.int8, data)
    scales_TN = np.ndarray((num_rows, math.ceil(width / BLOCK)), np.float32, scales)
    if width % BLOCK == 0:
        blocks_TNB = quantized_TD.reshape(num_rows, -1, BLOCK)
        product = np.multiply(blocks_TNB, scales_TN[..., None], dtype=np.float32)
    else:
        product = np.multiply(quantized_TD, scales_TN.repeat(BLOCK, axis=1)[:, :width], dtype=np.float32)
    return torch.from_numpy(product.reshape(num_rows, width))


def _put_blocks(states_TD: Tensor, message: tensor_pb2.Tensor) -> None:
    num_rows, width = states_TD.shape
    num_blocks = math.ceil(width / BLOCK)
    message.dtype = tensor_pb2.DTYPE_INT8
    message.shape.extend((num_rows, width))
    if not states_TD.numel():
        return
    states_TD = states_TD.to(torch.float32)
    if width % BLOCK:
        states_TD = functional.pad(states_TD, (0, num_blocks * BLOCK - width))
    blocks_TNB = states_TD.reshape(num_rows, num_blocks, BLOCK)
    absmax_TN = blocks_TNB.abs().amax(-1)
    scales_TN = absmax_TN.div(SCALE_DIVISOR).masked_fill_(absmax_TN < SMALLEST_BLOCK, 0.0)
    inverse_TN = scales_TN.reciprocal().masked_fill_(scales_TN == 0, 0.0)
    if not bool(absmax_TN.isfinite().all()):
        broken_TN = ~absmax_TN.isfinite()
        scales_TN.masked_fill_(broken_TN, torch.nan)
        blocks_TNB = blocks_TNB.masked_fill(broken_TN[..., None], 0.0)
        inverse_TN.masked_fill_(broken_TN, 0.0)
    quantized_TD = (blocks_TNB * inverse_TN[..., None]).round_().to(torch.int8).view(num_rows, -1)
    message.data = quantized_TD[:, :width].numpy().tobytes()
    message.scales = scales_TN.numpy().tobytes()
