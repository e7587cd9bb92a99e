"""How a torch tensor becomes a `Tensor` message and back. Headers are checked by `braid_rpc.tensor`."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from braid_rpc.errors import FrameError, InvalidRequestError
from braid_rpc.tensor import DEFAULT_MAX_TENSOR_BYTES, DTYPE_CODES, check_header, check_length
from braid_rpc.v1 import tensor_pb2

_TORCH_BY_CODE: dict[tensor_pb2.DType, torch.dtype] = {
    code: getattr(torch, name) for name, code in DTYPE_CODES.items()
}
_CODE_BY_TORCH: dict[torch.dtype, tensor_pb2.DType] = {dtype: code for code, dtype in _TORCH_BY_CODE.items()}

# Numpy knows no bfloat16: its bits travel as those of integers.
_NUMPY_BY_TORCH: dict[torch.dtype, np.dtype[np.generic]] = {
    dtype: np.dtype(np.int16) if dtype is torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
    for dtype in _CODE_BY_TORCH
}

# CPython keeps bytes of length one for everybody; longer ones that come out of a message are nobody else's.
_MIN_OWN_BYTES = 16


def _say_it_once() -> None:
    """Torch warns, once per process, of sharing read-only bytes. Here they are the tensor's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(bytes(_MIN_OWN_BYTES), np.uint8))


_say_it_once()


def encode_torch(tensor: Tensor) -> tensor_pb2.Tensor:
    """The message that carries ``tensor`` (any device, shape and stride; no gradient history).

    Raises: InvalidRequestError for a dtype that the wire does not know.
    """
    message = tensor_pb2.Tensor()
    put_torch(tensor, message)
    return message


def put_torch(tensor: Tensor, message: tensor_pb2.Tensor) -> None:
    """Write ``tensor`` into an empty message that is part of another one: a copy less. Raises: as `encode_torch`."""
    code = _CODE_BY_TORCH.get(tensor.dtype)
    if code is None:
        raise InvalidRequestError(f"tensor: got dtype {tensor.dtype}, expected one of {sorted(DTYPE_CODES)}")
    plain = tensor.detach() if tensor.requires_grad else tensor
    if not plain.is_cpu:
        plain = plain.cpu()
    if plain.dtype is torch.bfloat16:
        plain = plain.contiguous().view(torch.int16)
    message.dtype = code
    message.shape.extend(tensor.shape)
    message.data = plain.numpy().tobytes()


def decode_torch(
    message: tensor_pb2.Tensor,
    *,
    dtypes: Collection[str] | None = None,
    shape: Sequence[int | None] | None = None,
    max_bytes: int = DEFAULT_MAX_TENSOR_BYTES,
    what: str = "tensor",
) -> Tensor:
    """The tensor that ``message`` carries, on the CPU, in memory of its own (it may be written to).

    Args: as for `braid_rpc.tensor.check_header`.
    Raises: FrameError, ShapeMismatchError, naming what was got and what was expected.
    """
    header = check_header(message, dtypes=dtypes, shape=shape, max_bytes=max_bytes, what=what)
    code, extents, num_bytes = header
    data = check_length(message, header, what)
    dtype = _TORCH_BY_CODE[code]
    if num_bytes == 0:
        return torch.empty(extents, dtype=dtype)
    if dtype is torch.bool and max(data) > 1:
        raise FrameError(f"{what}: got a byte other than 0 and 1 in a tensor of dtype bool")
    buffer = data if num_bytes >= _MIN_OWN_BYTES else bytearray(data)
    # By way of numpy: shaping a tensor afterwards takes longer than making it.
    tensor = torch.from_numpy(np.ndarray(extents, _NUMPY_BY_TORCH[dtype], buffer))
    return tensor.view(dtype) if dtype is torch.bfloat16 else tensor
