"""Frames in narrower formats: how far off they may be, what they do with what is broken, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from braid_rpc import frames as numpy_frames
from braid_rpc.errors import ConfigError, FrameError, ShapeMismatchError
from braid_rpc.frames import (
    BLOCK,
    ERROR_DIVISOR,
    FRAME_FORMATS,
    SMALLEST_BLOCK,
    check_frames,
    encode_frame,
    formats_for,
    is_narrower,
)
from braid_rpc.v1 import tensor_pb2
from braid_services.frames import decode_frame, put_frame

LARGEST = float(np.finfo(np.float32).max)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
# Rounding to nearest: half a unit in the last place, relative to the number; below the normal numbers, absolute.
RELATIVE = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
SUBNORMAL = {"float32": 0.0, "bfloat16": 2.0**-133, "float16": 2.0**-24}


def shapes() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]))


def states(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, shapes(), elements=elements)


FINITE = states(st.floats(width=32, allow_nan=False, allow_infinity=False))
ANY = states(FLOATS)


def over_the_wire(states_TD: torch.Tensor, name: str | None) -> torch.Tensor:
    message = tensor_pb2.Tensor()
    put_frame(states_TD, name, message)
    return decode_frame(tensor_pb2.Tensor.FromString(message.SerializeToString()), shape=states_TD.shape)


def largest_of_block(states_TD: np.ndarray) -> np.ndarray:
    """For each number, the largest magnitude in its block."""
    largest = np.zeros(states_TD.shape, np.float64)
    for start in range(0, states_TD.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        largest[:, block] = np.abs(states_TD[:, block].astype(np.float64)).max(axis=1, keepdims=True)
    return largest


@given(FINITE)
@example(np.full((1, BLOCK), LARGEST, np.float32))
@example(np.full((2, 3), -LARGEST, np.float32))
@example(np.full((1, 2), np.float32(SMALLEST_BLOCK)))
@example(np.full((1, 2), np.float32(1e-45)))
@example(np.array([[1e-30, 1e30, 0.0]], np.float32))
def test_int8_is_off_by_at_most_a_part_of_its_blocks_largest(states_TD: np.ndarray) -> None:
    got = over_the_wire(torch.from_numpy(states_TD), "int8").numpy()
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    bound = np.maximum(largest_of_block(states_TD) / ERROR_DIVISOR, SMALLEST_BLOCK)
    assert (np.abs(got.astype(np.float64) - states_TD) <= bound).all()
    assert (got[largest_of_block(states_TD) == 0] == 0).all()


@given(ANY)
def test_what_is_broken_stays_so_in_its_own_block_alone(states_TD: np.ndarray) -> None:
    got = over_the_wire(torch.from_numpy(states_TD), "int8").numpy()
    broken = ~np.isfinite(largest_of_block(states_TD))
    assert (np.isnan(got) == broken).all()
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(np.float64) - states_TD)
    assert (error <= np.maximum(largest_of_block(states_TD) / ERROR_DIVISOR, SMALLEST_BLOCK))[~broken].all()


@given(ANY)
def test_numpy_and_torch_send_the_same_bytes_and_read_the_same_states(states_TD: np.ndarray) -> None:
    by_torch = tensor_pb2.Tensor()
    put_frame(torch.from_numpy(states_TD), "int8", by_torch)
    by_numpy = encode_frame(states_TD, "int8")
    sent = decode_frame(by_torch).numpy()
    np.testing.assert_array_equal(numpy_frames.decode_frame(by_torch), sent)
    np.testing.assert_array_equal(decode_frame(by_numpy).numpy(), numpy_frames.decode_frame(by_numpy))
    # Scales may differ in their last bit, and a number between two steps may then go either way.
    bound = np.maximum(largest_of_block(states_TD) / ERROR_DIVISOR, SMALLEST_BLOCK)
    sound = np.isfinite(bound)
    assert (np.abs(sent - decode_frame(by_numpy).numpy()) <= 2 * bound)[sound].all()


@given(states(st.floats(-65000, 65000, width=32)), st.sampled_from(sorted(RELATIVE)))
def test_the_narrow_floats_round_to_nearest(states_TD: np.ndarray, name: str) -> None:
    for got in (
        over_the_wire(torch.from_numpy(states_TD), name).float().numpy(),
        numpy_frames.decode_frame(encode_frame(states_TD, name)).astype(np.float32),
    ):
        assert (
            np.abs(got - states_TD) <= np.maximum(np.abs(states_TD) * RELATIVE[name], SUBNORMAL[name])
        ).all()


def test_float16_refuses_what_it_cannot_hold_and_passes_on_what_is_broken() -> None:
    large = torch.tensor([[1.0, 70000.0]])
    with pytest.raises(FrameError, match="beyond 65504"):
        over_the_wire(large, "float16")
    with pytest.raises(FrameError, match="beyond 65504"):
        encode_frame(large.numpy(), "float16")
    broken = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1.0]])
    assert torch.equal(over_the_wire(broken, "float16").isnan(), broken.isnan())
    assert torch.equal(over_the_wire(broken, "float16").isinf(), broken.isinf())
    assert np.isinf(numpy_frames.decode_frame(encode_frame(broken.numpy(), "float16"))).sum() == 2


@pytest.mark.parametrize(("name", "num_bytes"), [(None, 3072), ("bfloat16", 1536), ("int8", 768 + 48)])
def test_what_a_row_of_768_takes(name: str | None, num_bytes: int) -> None:
    message = tensor_pb2.Tensor()
    put_frame(torch.ones(1, 768), name, message)
    assert len(message.data) + len(message.scales) == num_bytes


def test_strides_and_gradients_do_not_matter() -> None:
    states_TD = torch.randn(3, 2 * BLOCK, requires_grad=True).t()[::2]
    got = over_the_wire(states_TD, "int8")
    assert not got.requires_grad
    assert torch.equal(got, over_the_wire(states_TD.detach().contiguous(), "int8"))


@given(
    shape=st.lists(st.integers(0, 2**32 - 1), max_size=4),
    data=st.binary(max_size=64),
    scales=st.binary(max_size=16),
)
def test_any_message_is_decoded_or_refused_with_a_typed_error(
    shape: list[int], data: bytes, scales: bytes
) -> None:
    message = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_INT8, shape=shape, data=data, scales=scales)
    for decode in (decode_frame, numpy_frames.decode_frame):
        try:
            with np.errstate(all="ignore"):
                states_TD = decode(message, max_bytes=2**20)
        except (FrameError, ShapeMismatchError) as error:
            assert "got" in str(error)
        else:
            assert tuple(states_TD.shape) == tuple(shape)


def test_sizes_are_checked_before_anything_is_made_of_them() -> None:
    message = encode_frame(np.ones((2, 100), np.float32), "int8")
    with pytest.raises(FrameError, match="got 12 bytes of scales, expected 16"):
        decode_frame(
            tensor_pb2.Tensor(dtype=message.dtype, shape=[2, 100], data=message.data, scales=b"0" * 12)
        )
    with pytest.raises(ShapeMismatchError, match=r"expected \(any, 64\)"):
        decode_frame(message, shape=(None, 64))
    with pytest.raises(FrameError, match="expected one of"):
        decode_frame(message, formats=("float32",))
    with pytest.raises(FrameError, match="which is 200 bytes, expected at most 199"):
        decode_frame(message, max_bytes=799)


def test_a_part_takes_its_own_dtype_and_what_is_narrower() -> None:
    assert formats_for("float32") == FRAME_FORMATS
    assert formats_for("bfloat16") == ("bfloat16", "int8")
    assert is_narrower("int8", "bfloat16")
    assert not is_narrower("bfloat16", "bfloat16")
    assert not is_narrower(None, "float32")


def test_a_format_that_the_peer_does_not_take_is_refused_with_both_named() -> None:
    check_frames("shards.a.frames", "int8", ("float32", "int8"))
    check_frames("shards.a.frames", None, ())
    with pytest.raises(ConfigError, match=r"shards\.a\.frames: got 'float32', expected .*: bfloat16, int8"):
        check_frames("shards.a.frames", "float32", ("bfloat16", "int8"))
    with pytest.raises(ConfigError, match=r"got 'int8', expected .*: none"):
        check_frames("fusion.frames", "int8", ())
