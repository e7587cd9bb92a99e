"""In which formats hidden states may travel, and the 8-bit one: int8 in blocks, each with a scale of its own.

A block is 64 consecutive numbers of one row (the last of a row may be shorter). Its scale is its largest
magnitude over 127, a float32; a number x travels as round(x / scale). What comes back is off by at most
1/253 of the largest magnitude in its block, and an outlier costs precision in its own block alone. A block whose
magnitudes are all below 1e-30 comes back as zeros. A block that holds a NaN or an infinity comes back as NaN: what
is broken stays so, in its own row, and other sessions in the frame are spared. Numbers go through float32.

Here with numpy; `braid_services.frames` has the same for torch. Shapes: T rows, D width, N blocks of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from braid_rpc.errors import ConfigError, FrameError
from braid_rpc.tensor import (
    DEFAULT_MAX_TENSOR_BYTES,
    DTYPE_CODES,
    ITEM_BYTES,
    AnyArray,
    check_header,
    check_length,
    decode_tensor,
    encode_tensor,
)
from braid_rpc.v1 import tensor_pb2

FRAME_FORMATS = ("float32", "bfloat16", "float16", "int8")
BLOCK = 64
ERROR_DIVISOR = 253.0
SMALLEST_BLOCK = 1e-30
# A hair above 127, so that 127 scales never exceed the block's largest number and cannot overflow.
SCALE_DIVISOR = 127.000015


def formats_for(dtype: str) -> tuple[str, ...]:
    """What a part whose states are of ``dtype`` takes: that itself, and all that is narrower."""
    return (dtype, *(name for name in FRAME_FORMATS if ITEM_BYTES[name] < ITEM_BYTES[dtype]))


def check_frames(key: str, wanted: str | None, taken: Sequence[str]) -> None:
    """Raises: ConfigError, naming both, if the peer does not take the format that a key of the configuration
    asks for. ``taken``: what the peer's card lists."""
    if wanted is not None and wanted not in taken:
        listed = ", ".join(taken) if taken else "none (an older version)"
        raise ConfigError(f"{key}: got {wanted!r}, expected one of those that its card lists: {listed}")


def is_narrower(frames: str | None, dtype: str) -> bool:
    """Whether states of ``dtype`` lose something in that format. None: they travel as they are."""
    return frames is not None and ITEM_BYTES[frames] < ITEM_BYTES[dtype]


def encode_frame(states_TD: AnyArray, frames: str) -> tensor_pb2.Tensor:
    """The message that carries states in one of `FRAME_FORMATS`.

    Raises: FrameError for finite numbers beyond float16's range.
    """
    if frames != "int8":
        with np.errstate(over="ignore"):
            narrow_TD = states_TD.astype(_numpy_type(frames))
        if frames == "float16" and np.isinf(narrow_TD).sum() != np.isinf(states_TD).sum():
            raise overflow()
        return encode_tensor(narrow_TD)
    num_rows, width = states_TD.shape
    num_blocks = math.ceil(width / BLOCK)
    padded = np.zeros((num_rows, num_blocks * BLOCK), np.float32)
    with np.errstate(over="ignore"):
        padded[:, :width] = states_TD
    blocks_TNB = padded.reshape(num_rows, num_blocks, BLOCK)
    absmax_TN = np.abs(blocks_TNB).max(axis=-1, initial=0.0)
    is_sound = np.isfinite(absmax_TN)
    scales_TN = np.where(absmax_TN < SMALLEST_BLOCK, 0.0, absmax_TN / np.float32(SCALE_DIVISOR))
    scales_TN = np.where(is_sound, scales_TN, np.nan).astype(np.float32)
    inverse_TN = np.divide(
        1.0, scales_TN, where=is_sound & (scales_TN > 0), out=np.zeros(scales_TN.shape, np.float32)
    )
    if not is_sound.all():
        blocks_TNB = np.where(is_sound[..., None], blocks_TNB, np.float32(0))
    quantized = np.rint(blocks_TNB * inverse_TN[..., None]).astype(np.int8)
    quantized_TD = quantized.reshape(num_rows, num_blocks * BLOCK)[:, :width]
    return tensor_pb2.Tensor(
        dtype=tensor_pb2.DTYPE_INT8,
        shape=(num_rows, width),
        data=quantized_TD.tobytes(),
        scales=scales_TN.astype("<f4").tobytes(),
    )


def decode_frame(
    message: tensor_pb2.Tensor,
    *,
    formats: Sequence[str] = FRAME_FORMATS,
    shape: Sequence[int | None] = (None, None),
    max_bytes: int = DEFAULT_MAX_TENSOR_BYTES,
    what: str = "frame",
) -> AnyArray:
    """The states (T, D) that ``message`` carries, float32 if they came as int8.

    Args: as for `braid_rpc.tensor.check_header`; ``max_bytes`` bounds the states, not their compressed form.
    Raises: FrameError, ShapeMismatchError, naming what was got and what was expected.
    """
    if message.dtype != tensor_pb2.DTYPE_INT8:
        return decode_tensor(message, dtypes=formats, shape=shape, max_bytes=max_bytes, what=what)
    (num_rows, width), data, scales = check_blocks(
        message, formats=formats, shape=shape, max_bytes=max_bytes, what=what
    )
    quantized_TD = np.frombuffer(data, np.int8).reshape(num_rows, width)
    scales_TN = np.frombuffer(scales, "<f4").reshape(num_rows, -1 if num_rows else math.ceil(width / BLOCK))
    scales_TD: NDArray[np.float32] = np.repeat(scales_TN, BLOCK, axis=1)[:, :width]
    return np.multiply(quantized_TD, scales_TD, dtype=np.float32)


def check_blocks(
    message: tensor_pb2.Tensor,
    *,
    formats: Sequence[str],
    shape: Sequence[int | None],
    max_bytes: int,
    what: str,
) -> tuple[tuple[int, int], bytes, bytes]:
    """Judge a message of int8 blocks before anything is made of it: its extents (T, D), its numbers and scales.

    Raises: FrameError, ShapeMismatchError.
    """
    header = check_header(message, dtypes=formats, shape=shape, max_bytes=max_bytes // 4, what=what)
    _, extents, _ = header
    if len(extents) != 2:
        raise FrameError(f"{what}: got {len(extents)} dimensions of int8 blocks, expected 2")
    num_rows, width = extents
    data, scales = check_length(message, header, what), message.scales
    num_bytes = num_rows * math.ceil(width / BLOCK) * 4
    if len(scales) != num_bytes:
        raise FrameError(
            f"{what}: got {len(scales)} bytes of scales, expected {num_bytes} for int8 {extents} in blocks of {BLOCK}"
        )
    return (num_rows, width), data, scales


def overflow() -> FrameError:
    """What is raised for a state that float16 cannot hold."""
    return FrameError(
        "frame: got a state beyond 65504, expected all within float16's range; bfloat16, float32 and int8 frames "
        "can carry it"
    )


def frame_code(frames: str) -> tensor_pb2.DType:
    """The wire's code of a format; `DTYPE_INT8` stands for int8 blocks."""
    return DTYPE_CODES[frames]


def _numpy_type(frames: str) -> np.dtype[np.generic]:
    return np.dtype(ml_dtypes.bfloat16) if frames == "bfloat16" else np.dtype(frames)
