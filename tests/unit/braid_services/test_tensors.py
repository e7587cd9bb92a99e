from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from braid_rpc.errors import FrameError, InvalidRequestError, ShapeMismatchError
from braid_rpc.tensor import DTYPE_CODES, decode_tensor
from braid_rpc.v1 import tensor_pb2
from braid_services.tensors import decode_torch, encode_torch


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = getattr(torch, draw(st.sampled_from(sorted(DTYPE_CODES))))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        raw = bytes(b & 1 for b in raw)
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).view(shape)


def over_the_wire(message: tensor_pb2.Tensor) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor.FromString(message.SerializeToString())


def bits(tensor: torch.Tensor) -> bytes:
    return encode_torch(tensor).data if tensor.numel() else b""


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b.contiguous()))


@given(tensors())
def test_what_arrives_is_what_was_sent_bit_for_bit(tensor: torch.Tensor) -> None:
    assert same_bits(decode_torch(over_the_wire(encode_torch(tensor))), tensor)


@given(tensors(), st.data())
def test_strides_don_t_matter(tensor: torch.Tensor, data: st.DataObject) -> None:
    view = tensor.permute(data.draw(st.permutations(range(tensor.dim()))))
    if view.dim():
        view = view[:: data.draw(st.integers(1, 3))]
    assert same_bits(decode_torch(over_the_wire(encode_torch(view))), view)


@given(tensors())
def test_torch_and_numpy_read_the_same(tensor: torch.Tensor) -> None:
    array = decode_tensor(over_the_wire(encode_torch(tensor)))
    with np.errstate(invalid="ignore"):  # signalling NaNs are among the examples
        np.testing.assert_array_equal(array.astype(np.float64), tensor.to(torch.float64).numpy())
    assert str(tensor.dtype) == f"torch.{array.dtype}"


@given(
    dtype=st.integers(0, 12),
    shape=st.lists(st.integers(0, 2**32 - 1), max_size=12),
    data=st.binary(max_size=64),
)
def test_any_message_is_decoded_or_refused_with_a_typed_error(
    dtype: int, shape: list[int], data: bytes
) -> None:
    message = tensor_pb2.Tensor(dtype=dtype, shape=shape, data=data)
    try:
        tensor = decode_torch(over_the_wire(message), max_bytes=2**20)
    except FrameError as error:
        assert "got" in str(error)
    else:
        assert tuple(tensor.shape) == tuple(shape) and tensor.nbytes == len(data)


@pytest.mark.parametrize("num_rows", [1, 100])
def test_a_decoded_tensor_is_the_receiver_s_own(num_rows: int) -> None:
    message = over_the_wire(encode_torch(torch.ones(num_rows, dtype=torch.uint8)))
    first, second = decode_torch(message), decode_torch(message)
    first += 1
    assert second.eq(1).all() and decode_torch(message).eq(1).all()
    assert b"\x01"[0] == 1


def test_gradient_history_stays_at_home() -> None:
    tensor = torch.ones(2, requires_grad=True) * 2
    assert not decode_torch(encode_torch(tensor)).requires_grad


def test_what_was_agreed_is_checked() -> None:
    message = encode_torch(torch.zeros(3, 4))
    with pytest.raises(ShapeMismatchError, match=r"hidden: got shape \(3, 4\), expected \(any, 5\)"):
        decode_torch(message, shape=(None, 5), what="hidden")
    with pytest.raises(FrameError, match="got dtype float32, expected one of"):
        decode_torch(message, dtypes=("bfloat16",))
    with pytest.raises(FrameError, match="is 48 bytes, expected at most 47"):
        decode_torch(message, max_bytes=47)
    message.data = message.data[:-1]
    with pytest.raises(FrameError, match="got 47 bytes of data, expected 48"):
        decode_torch(message)


def test_tensors_the_wire_doesn_t_know_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"got dtype torch\.complex64"):
        encode_torch(torch.zeros(1, dtype=torch.complex64))
