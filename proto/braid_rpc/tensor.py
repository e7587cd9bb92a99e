"""How an array becomes a `Tensor` message and back. Knows numpy, and nothing of torch or of what is sent.

A message from outside is judged by its header first: dtype, number of dimensions, every extent and the byte
count that follow from them are compared with what was agreed, and only then are its bytes touched.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from braid_rpc.errors import FrameError, InvalidRequestError, ShapeMismatchError
from braid_rpc.v1 import tensor_pb2

AnyArray = NDArray[np.generic]
# Wire dtype, extents, bytes of data that follow from them.
TensorHeader = tuple[tensor_pb2.DType, tuple[int, ...], int]

MAX_DIMENSIONS = 8
DEFAULT_MAX_TENSOR_BYTES = 64 * 2**20

# Wire code, name, numpy's type. The names are those of configuration files and cards.
_TABLE: tuple[tuple[tensor_pb2.DType, str, np.dtype[np.generic]], ...] = (
    (tensor_pb2.DTYPE_FLOAT32, "float32", np.dtype(np.float32)),
    (tensor_pb2.DTYPE_FLOAT16, "float16", np.dtype(np.float16)),
    (tensor_pb2.DTYPE_BFLOAT16, "bfloat16", np.dtype(ml_dtypes.bfloat16)),
    (tensor_pb2.DTYPE_FLOAT64, "float64", np.dtype(np.float64)),
    (tensor_pb2.DTYPE_INT64, "int64", np.dtype(np.int64)),
    (tensor_pb2.DTYPE_INT32, "int32", np.dtype(np.int32)),
    (tensor_pb2.DTYPE_INT8, "int8", np.dtype(np.int8)),
    (tensor_pb2.DTYPE_UINT8, "uint8", np.dtype(np.uint8)),
    (tensor_pb2.DTYPE_BOOL, "bool", np.dtype(np.bool_)),
)
DTYPE_NAMES: dict[tensor_pb2.DType, str] = {code: name for code, name, _ in _TABLE}
DTYPE_CODES: dict[str, tensor_pb2.DType] = {name: code for code, name, _ in _TABLE}
ITEM_BYTES: dict[str, int] = {name: dtype.itemsize for _, name, dtype in _TABLE}
_NUMPY_BY_CODE: dict[tensor_pb2.DType, np.dtype[np.generic]] = {code: dtype for code, _, dtype in _TABLE}
_CODE_BY_NUMPY: dict[np.dtype[np.generic], tensor_pb2.DType] = {dtype: code for code, _, dtype in _TABLE}

FLOAT_DTYPES = frozenset({"float32", "float16", "bfloat16", "float64"})

# `Tensor.data` holds little-endian bytes; only on a big-endian machine is there anything to swap.
_SWAP = sys.byteorder == "big"


def encode_tensor(array: AnyArray) -> tensor_pb2.Tensor:
    """The message that carries ``array`` (any shape and stride), copied once.

    Raises: InvalidRequestError for an array type that the wire does not know.
    """
    code = _CODE_BY_NUMPY.get(array.dtype)
    if code is None:
        native = array.dtype.newbyteorder("=")
        code = _CODE_BY_NUMPY.get(native)
        if code is None:
            raise InvalidRequestError(
                f"tensor: got dtype {array.dtype}, expected one of {sorted(DTYPE_CODES)}"
            )
        array = array.astype(native)
    if array.ndim > MAX_DIMENSIONS:
        raise InvalidRequestError(f"tensor: got {array.ndim} dimensions, expected at most {MAX_DIMENSIONS}")
    data = array.byteswap().tobytes() if _SWAP else array.tobytes()
    return tensor_pb2.Tensor(dtype=code, shape=array.shape, data=data)


def decode_tensor(
    message: tensor_pb2.Tensor,
    *,
    dtypes: Collection[str] | None = None,
    shape: Sequence[int | None] | None = None,
    max_bytes: int = DEFAULT_MAX_TENSOR_BYTES,
    what: str = "tensor",
) -> AnyArray:
    """The array that ``message`` carries: a read-only view of its bytes.

    Args: as for `check_header`.
    Raises: FrameError, ShapeMismatchError, naming what was got and what was expected.
    """
    code, extents, num_bytes = check_header(
        message, dtypes=dtypes, shape=shape, max_bytes=max_bytes, what=what
    )
    data = message.data
    if len(data) != num_bytes:
        raise FrameError(_length_text(what, code, extents, len(data), num_bytes))
    array = np.frombuffer(data, _NUMPY_BY_CODE[code])
    if code == tensor_pb2.DTYPE_BOOL and num_bytes and int(array.view(np.uint8).max()) > 1:
        raise FrameError(f"{what}: got a byte other than 0 and 1 in a tensor of dtype bool")
    if _SWAP:
        array = array.byteswap()
        array.flags.writeable = False
    return array.reshape(extents)


def check_header(
    message: tensor_pb2.Tensor,
    *,
    dtypes: Collection[str] | None = None,
    shape: Sequence[int | None] | None = None,
    max_bytes: int = DEFAULT_MAX_TENSOR_BYTES,
    what: str = "tensor",
) -> TensorHeader:
    """Judge a message by dtype and shape alone, without touching its data.

    Args:
        dtypes: names that are allowed (keys of `DTYPE_CODES`); None allows all.
        shape: the extents agreed, None for one that is free; None as a whole allows any.
        max_bytes: the most that the data may take.
        what: how the error calls this tensor.

    Returns: the wire's dtype code, the extents, and the number of data bytes that they imply.
    Raises: FrameError, ShapeMismatchError.
    """
    code = message.dtype
    name = DTYPE_NAMES.get(code)
    if name is None or (dtypes is not None and name not in dtypes):
        allowed = sorted(DTYPE_CODES if dtypes is None else dtypes)
        raise FrameError(f"{what}: got dtype {name or f'number {code}'}, expected one of {allowed}")
    extents = tuple(message.shape)
    if len(extents) > MAX_DIMENSIONS:
        raise FrameError(f"{what}: got {len(extents)} dimensions, expected at most {MAX_DIMENSIONS}")
    if shape is not None and extents != shape:
        _check_extents(what, extents, shape)
    num_bytes = math.prod(extents) * ITEM_BYTES[name]
    # An extent of zero must not hide the others: arrays without elements have limits of their own.
    claimed_bytes = num_bytes or math.prod(max(extent, 1) for extent in extents) * ITEM_BYTES[name]
    if claimed_bytes > max_bytes:
        raise FrameError(
            f"{what}: got {name} {extents}, which is {claimed_bytes} bytes, expected at most {max_bytes}"
        )
    return code, extents, num_bytes


def check_length(message: tensor_pb2.Tensor, header: TensorHeader, what: str = "tensor") -> bytes:
    """The data of a message whose header was checked, if it is as long as the header says.

    Raises: FrameError, naming both lengths.
    """
    data: bytes = message.data
    code, extents, num_bytes = header
    if len(data) != num_bytes:
        raise FrameError(_length_text(what, code, extents, len(data), num_bytes))
    return data


def _check_extents(what: str, extents: tuple[int, ...], shape: Sequence[int | None]) -> None:
    if len(extents) == len(shape):
        for got, wanted in zip(extents, shape, strict=True):
            if wanted is not None and got != wanted:
                break
        else:
            return
    expected = ", ".join("any" if wanted is None else str(wanted) for wanted in shape)
    raise ShapeMismatchError(f"{what}: got shape {extents}, expected ({expected})")


def _length_text(what: str, code: tensor_pb2.DType, extents: tuple[int, ...], got: int, expected: int) -> str:
    return f"{what}: got {got} bytes of data, expected {expected} for {DTYPE_NAMES[code]} {extents}"
