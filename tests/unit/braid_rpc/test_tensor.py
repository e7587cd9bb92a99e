from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from braid_rpc.errors import FrameError, InvalidRequestError, ShapeMismatchError
from braid_rpc.tensor import (
    DTYPE_CODES,
    FLOAT_DTYPES,
    ITEM_BYTES,
    MAX_DIMENSIONS,
    check_header,
    decode_tensor,
    encode_tensor,
)
from braid_rpc.v1 import tensor_pb2

NUMPY_TYPES = {name: np.dtype(getattr(ml_dtypes, name, None) or name) for name in DTYPE_CODES}
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Any array the wire knows, filled with any bit pattern: infinities, NaNs and subnormal numbers included."""
    dtype = NUMPY_TYPES[draw(st.sampled_from(sorted(NUMPY_TYPES)))]
    shape = draw(SHAPES)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype == np.bool_:
        raw = bytes(b & 1 for b in raw)
    return np.frombuffer(raw, dtype).reshape(shape)


def over_the_wire(message: tensor_pb2.Tensor) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor.FromString(message.SerializeToString())


@given(arrays())
def test_what_arrives_is_what_was_sent_bit_for_bit(array: np.ndarray) -> None:
    got = decode_tensor(over_the_wire(encode_tensor(array)))
    assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(arrays(), st.data())
def test_strides_don_t_matter(array: np.ndarray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(array.ndim)))
    step = data.draw(st.sampled_from([1, -1, 2]))
    view = array.transpose(order)
    if view.ndim:
        view = view[::step]
    got = decode_tensor(over_the_wire(encode_tensor(view)))
    assert (got.shape, got.tobytes()) == (view.shape, view.tobytes())


@given(
    dtype=st.integers(0, 12),
    shape=st.lists(st.integers(0, 2**32 - 1), max_size=12),
    data=st.binary(max_size=64),
)
@settings(max_examples=300)
def test_any_message_is_decoded_or_refused_with_a_typed_error(
    dtype: int, shape: list[int], data: bytes
) -> None:
    message = tensor_pb2.Tensor(dtype=dtype, shape=shape, data=data)
    try:
        array = decode_tensor(over_the_wire(message), max_bytes=2**20)
    except FrameError as error:
        assert "got" in str(error) and ("expected" in str(error) or "bool" in str(error))
    else:
        assert array.shape == tuple(shape) and array.nbytes == len(data)


@given(arrays(), st.integers(-3, 3).filter(bool))
def test_bytes_too_many_or_too_few_are_refused(array: np.ndarray, change: int) -> None:
    message = encode_tensor(array)
    data = message.data
    message.data = data + b"\0" * change if change > 0 else data[:change]
    if len(message.data) == len(data):
        return
    with pytest.raises(FrameError, match=f"got {len(message.data)} bytes of data, expected {len(data)}"):
        decode_tensor(message)


def test_a_huge_claim_is_refused_before_anything_is_allocated() -> None:
    message = tensor_pb2.Tensor(dtype="DTYPE_FLOAT32", shape=[2**32 - 1] * 8, data=b"")
    with pytest.raises(FrameError, match="expected at most 100"):
        decode_tensor(message, max_bytes=100)


def test_a_huge_claim_cannot_hide_behind_an_extent_of_zero() -> None:
    message = tensor_pb2.Tensor(dtype="DTYPE_FLOAT32", shape=[0, 2**31, 2**31], data=b"")
    with pytest.raises(FrameError, match="expected at most"):
        decode_tensor(message)
    assert decode_tensor(encode_tensor(np.zeros((0, 768), np.float32))).shape == (0, 768)


def test_the_shape_agreed_is_what_is_let_in() -> None:
    message = encode_tensor(np.zeros((3, 4), np.float32))
    assert decode_tensor(message, shape=(None, 4)).shape == (3, 4)
    assert decode_tensor(message, shape=(3, 4)).shape == (3, 4)
    for wrong in ((None, 5), (4, 4), (3,), (3, 4, None), ()):
        with pytest.raises(ShapeMismatchError, match=r"frame: got shape \(3, 4\), expected \("):
            decode_tensor(message, shape=wrong, what="frame")


def test_the_dtypes_agreed_are_what_is_let_in() -> None:
    message = encode_tensor(np.zeros(3, np.int64))
    with pytest.raises(FrameError, match=r"hidden: got dtype int64, expected one of \['bfloat16'"):
        decode_tensor(message, dtypes=FLOAT_DTYPES, what="hidden")
    message.dtype = 99
    with pytest.raises(FrameError, match="got dtype number 99"):
        decode_tensor(message)


def test_an_empty_message_is_no_tensor() -> None:
    with pytest.raises(FrameError, match="got dtype number 0"):
        decode_tensor(tensor_pb2.Tensor())


def test_a_bool_is_zero_or_one() -> None:
    message = encode_tensor(np.array([True, False]))
    message.data = b"\x01\x02"
    with pytest.raises(FrameError, match="other than 0 and 1"):
        decode_tensor(message)


def test_what_was_decoded_cannot_be_written_to() -> None:
    array = decode_tensor(encode_tensor(np.zeros(3, np.float32)))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1.0


def test_big_endian_arrays_are_turned_round() -> None:
    values = np.arange(5, dtype=">f4")
    got = decode_tensor(encode_tensor(values))
    assert got.dtype == np.float32 and np.array_equal(got, values)


def test_arrays_the_wire_doesn_t_know_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="got dtype complex128"):
        encode_tensor(np.zeros(3, np.complex128))
    with pytest.raises(InvalidRequestError, match="got dtype object"):
        encode_tensor(np.array([object()]))
    with pytest.raises(InvalidRequestError, match="got 9 dimensions"):
        encode_tensor(np.zeros((1,) * (MAX_DIMENSIONS + 1)))


def test_item_sizes_are_those_of_numpy() -> None:
    assert {name: dtype.itemsize for name, dtype in NUMPY_TYPES.items()} == ITEM_BYTES


def test_the_header_is_judged_without_the_data() -> None:
    message = tensor_pb2.Tensor(dtype="DTYPE_BFLOAT16", shape=[2, 3])
    assert check_header(message, shape=(None, 3)) == (tensor_pb2.DTYPE_BFLOAT16, (2, 3), 12)
