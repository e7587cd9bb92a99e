"""What a stream of fusion steps must hold, in process and over gRPC: one suite for both."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid_fusion.context import FusionContext
from braid_fusion.plan import BraidPlan, PlanPoint, PlanReadout, PlanShard
from braid_fusion.stack import FusionStack
from braid_fusion.weights import save_stack
from braid_rpc.errors import (
    BraidError,
    ConflictError,
    InvalidRequestError,
    ShapeMismatchError,
    StepOrderError,
    UnknownSessionError,
    UnknownVersionError,
)
from braid_rpc.fusion_client import FusionClient
from braid_rpc.steps import Segment
from braid_services.fusion.backend import FusionBackend
from braid_services.fusion.servicer import FusionServicer
from braid_services.serving import start_server

ROUNDING = 1e-5
WIDTHS = (6, 8)
POINTS = ("resonance", "attention", "mlp")


def _plan() -> BraidPlan:
    return BraidPlan(
        shards=(PlanShard("code", 6, 6, 20, "m0", "t"), PlanShard("prose", 8, 8, 20, "m1", "t")),
        anchor=0,
        points=tuple(
            PlanPoint(str(i), (i, i), name, 4, receivers=(0,) if name == "mlp" else (0, 1))
            for i, name in enumerate(POINTS)
        ),
        readout=PlanReadout("gate"),
    )


@pytest.fixture(scope="module")
def stack() -> FusionStack:
    stack = FusionStack(_plan())
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return stack


class _InProcess:
    """The backend's stream with numpy arrays, so that both sides are called alike."""

    def __init__(self, backend: FusionBackend) -> None:
        self._stream = backend.stream()
        self.open, self.crop, self.close, self.end = (
            self._stream.open,
            self._stream.crop,
            self._stream.close,
            self._stream.end,
        )

    def fuse(self, step_id: int, point: int, segments: Sequence[Segment], states: Sequence[np.ndarray]):
        fused = self._stream.fuse(step_id, point, segments, [torch.from_numpy(s) for s in states])
        return [None if state is None else state.numpy() for state in fused.states]

    def read_out(self, step_id: int, session_ids: Sequence[str], hidden, features=None):
        torch_features = None if features is None else torch.from_numpy(features)
        return self._stream.read_out(
            step_id, session_ids, [torch.from_numpy(h) for h in hidden], torch_features
        ).numpy()


@pytest.fixture(scope="module", params=["in process", "served"])
def side(request, stack, tmp_path_factory) -> Iterator[tuple[FusionBackend, Callable[[], object]]]:
    folder = tmp_path_factory.mktemp("fusion")
    save_stack(stack, folder / "weights" / "v1")
    backend = FusionBackend(folder / "weights")
    if request.param == "in process":
        backend.prepare(_plan())
        yield backend, lambda: _InProcess(backend)
        return
    with (
        start_server([FusionServicer(backend)], [f"unix:{folder}/s"]) as server,
        FusionClient(server.targets[0]) as client,
    ):
        card = client.prepare(_plan())
        assert (card.plan_hash, card.active_version) == (_plan().hash(), "v1")
        yield backend, client.stream


@pytest.fixture
def backend(side) -> FusionBackend:
    return side[0]


@pytest.fixture
def stream(side):
    backend, connect = side
    stream = connect()
    yield stream
    stream.end()
    _wait_until_free(backend)


def _wait_until_free(backend: FusionBackend) -> None:
    """A served stream ends a moment after its client: wait for it, as long as it makes sense."""
    pause = threading.Event()
    for _ in range(200):
        if backend.num_sessions == 0:
            break
        pause.wait(0.02)
    assert (backend.num_sessions, backend.status().cache_bytes) == (0, 0)


def _rows(count: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((count, width), dtype=np.float32) for width in WIDTHS]


def _features(count: int) -> np.ndarray:
    return np.random.default_rng(5).random((count, 2, 3), dtype=np.float32)


def _step(stream, step_id: int, segments: Sequence[Segment], states_by_point) -> list:
    return [stream.fuse(step_id, point, segments, states) for point, states in enumerate(states_by_point)]


def test_stepping_equals_the_modules_themselves(stream, stack) -> None:
    assert stream.open(["a", "b"]) == "v1"
    whole = [_rows(7, seed=point) for point in range(3)]
    cuts = [(0, 3), (3, 4), (4, 7)]
    got: list[list] = [[] for _ in POINTS]
    for step, (start, end) in enumerate(cuts):
        # A second session in the same batch, before the first.
        segments = [Segment("b", step, 1), Segment("a", start, end - start)]
        states = [
            [np.concatenate([_rows(1, 50 + step)[s], w[s][start:end]]) for s in range(2)] for w in whole
        ]
        for point, fused in enumerate(_step(stream, step, segments, states)):
            got[point].append([None if f is None else f[1:].copy() for f in fused])
    for point in range(3):
        with torch.no_grad():
            expected = stack.fuse(
                point, [torch.from_numpy(s) for s in whole[point]], FusionContext.whole([7])
            ).states
        for shard, state in enumerate(expected):
            parts = [piece[shard] for piece in got[point]]
            if state is None:
                assert parts == [None] * 3
            else:
                np.testing.assert_allclose(np.concatenate(parts), state.numpy(), atol=ROUNDING, rtol=ROUNDING)


def test_reading_out_equals_the_modules_themselves(stream, stack) -> None:
    stream.open(["a", "b"])
    got = stream.read_out(1, ["a", "b", "a"], _rows(3), _features(3))
    with torch.no_grad():
        expected = stack.read_out([torch.from_numpy(h) for h in _rows(3)], torch.from_numpy(_features(3)))
    np.testing.assert_allclose(got, expected.numpy(), atol=ROUNDING, rtol=ROUNDING)
    np.testing.assert_allclose(np.exp(got).sum(-1), 1.0, atol=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_states_come_back_in_their_own_dtype(side, dtype) -> None:
    backend, _ = side
    stream = backend.stream()
    stream.open(["a"])
    states = [torch.from_numpy(state).to(dtype) for state in _rows(2)]
    assert all(state.dtype is dtype for state in stream.fuse(1, 0, [Segment("a", 0, 2)], states).states)
    stream.end()


def test_a_repeat_gives_the_same_reply_and_changes_nothing(stream) -> None:
    stream.open(["a"])
    segments = [Segment("a", 0, 2)]
    first = stream.fuse(1, 0, segments, _rows(2))
    again = stream.fuse(1, 0, segments, _rows(2, seed=9))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    stream.fuse(1, 1, segments, _rows(2, seed=1))
    once = stream.fuse(1, 2, segments, _rows(2, seed=2))
    twice = stream.fuse(1, 2, segments, _rows(2, seed=2))
    assert np.array_equal(once[0], twice[0])
    stream.fuse(2, 0, [Segment("a", 2, 1)], _rows(1))


def test_an_abandoned_batch_leaves_no_trace(stream) -> None:
    stream.open(["a", "fresh"])
    stream.fuse(1, 0, [Segment("a", 0, 4)], _rows(4, seed=7))
    stream.fuse(1, 1, [Segment("a", 0, 4)], _rows(4, seed=8))
    states = [_rows(3, seed=point) for point in range(3)]
    after = _step(stream, 2, [Segment("a", 0, 3)], states)
    clean = _step(stream, 3, [Segment("fresh", 0, 3)], states)
    for left, right in zip(after, clean, strict=True):
        for x, y in zip(left, right, strict=True):
            assert x is None or np.array_equal(x, y)


def test_after_a_crop_a_session_goes_on_as_if_the_rest_had_not_been(stream) -> None:
    stream.open(["a", "fresh"])
    head = [_rows(3, seed=point) for point in range(3)]
    tail = [_rows(2, seed=10 + point) for point in range(3)]
    _step(stream, 1, [Segment("a", 0, 3)], head)
    _step(stream, 2, [Segment("a", 3, 2)], [_rows(2, seed=90)] * 3)
    stream.crop("a", 3)
    after = _step(stream, 3, [Segment("a", 3, 2)], tail)
    _step(stream, 4, [Segment("fresh", 0, 3)], head)
    clean = _step(stream, 5, [Segment("fresh", 3, 2)], tail)
    assert np.array_equal(after[1][0], clean[1][0])
    stream.crop("a", 0)
    again = _step(stream, 6, [Segment("a", 0, 3)], head)
    assert again[1][0].shape == (3, 6)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda s: s.fuse(6, 0, [Segment("a", 1, 1)], _rows(1)),
            StepOrderError,
            "got position 1, expected 2",
        ),
        (
            lambda s: s.fuse(6, 0, [Segment("a", 3, 1)], _rows(1)),
            StepOrderError,
            "got position 3, expected 2",
        ),
        (
            lambda s: s.fuse(5, 0, [Segment("a", 2, 1)], _rows(1)),
            StepOrderError,
            "step 5 .* expected one after 5",
        ),
        (lambda s: s.fuse(4, 0, [Segment("a", 2, 1)], _rows(1)), StepOrderError, "step 4"),
        (
            lambda s: s.fuse(6, 1, [Segment("a", 2, 1)], _rows(1)),
            StepOrderError,
            "point 1 of step 6, expected",
        ),
        (
            lambda s: s.fuse(5, 2, [Segment("b", 0, 1)], _rows(1)),
            StepOrderError,
            "expected point 1 of step 5",
        ),
        (lambda s: s.fuse(5, 1, [Segment("b", 0, 2)], _rows(2)), StepOrderError, "other segments"),
        (
            lambda s: s.fuse(6, 3, [Segment("a", 2, 1)], _rows(1)),
            InvalidRequestError,
            "got point 3, expected",
        ),
        (lambda s: s.fuse(6, 0, [Segment("x", 0, 1)], _rows(1)), UnknownSessionError, "no session 'x'"),
        (lambda s: s.fuse(6, 0, [], _rows(0)), InvalidRequestError, "no segments"),
        (lambda s: s.fuse(6, 0, [Segment("a", 2, 0)], _rows(0)), InvalidRequestError, "got 0 rows"),
        (
            lambda s: s.fuse(6, 0, [Segment("a", 2, 1), Segment("a", 3, 1)], _rows(2)),
            InvalidRequestError,
            "two segments",
        ),
        (lambda s: s.fuse(6, 0, [Segment("a", 2, 2)], _rows(1)), ShapeMismatchError, "'code'"),
        (lambda s: s.fuse(6, 0, [Segment("a", 2, 1)], _rows(1)[:1]), ShapeMismatchError, "got 1.* 2"),
        (lambda s: s.fuse(6, 0, [Segment("a", 2, 1)], _rows(1)[::-1]), ShapeMismatchError, "'code'"),
        (lambda s: s.read_out(6, ["x"], _rows(1), _features(1)), UnknownSessionError, "'x'"),
        (lambda s: s.read_out(6, ["a"], _rows(2), _features(2)), ShapeMismatchError, r"\(2, "),
        (lambda s: s.read_out(6, ["a"], _rows(1)), ShapeMismatchError, "features: got None"),
        (lambda s: s.read_out(6, [], _rows(0), _features(0)), InvalidRequestError, "no rows"),
        (lambda s: s.crop("x", 0), UnknownSessionError, "'x'"),
        (lambda s: s.crop("a", 3), InvalidRequestError, "got length 3, expected 0 to 2"),
        (lambda s: s.open(["c", "a"]), ConflictError, "'a' is open already"),
        (lambda s: s.open(["c", "c"]), InvalidRequestError, "different ids"),
        (lambda s: s.open([""]), InvalidRequestError, "not empty"),
        (lambda s: s.open(["c"], "v9"), UnknownVersionError, "'v9', expected one of untrained, v1"),
    ],
)
def test_a_wrong_call_has_a_typed_error_and_changes_nothing(stream, backend, call, error, says) -> None:
    stream.open(["a", "b"])
    _step(stream, 4, [Segment("a", 0, 2)], [_rows(2)] * 3)
    under_way = [Segment("b", 0, 1)]
    stream.fuse(5, 0, under_way, _rows(1))
    before = backend.status()
    with pytest.raises(error, match=says):
        call(stream)
    assert dataclasses.replace(backend.status(), cache_bytes=0) == dataclasses.replace(before, cache_bytes=0)
    stream.fuse(5, 1, under_way, _rows(1))
    stream.fuse(5, 2, under_way, _rows(1))
    _step(stream, 6, [Segment("a", 2, 1), Segment("b", 1, 1)], [_rows(2)] * 3)


def test_a_closed_session_is_gone_and_its_name_free(stream) -> None:
    stream.open(["a", "b"])
    _step(stream, 1, [Segment("a", 0, 2), Segment("b", 0, 1)], [_rows(3)] * 3)
    stream.close(["a", "never opened"])
    with pytest.raises(UnknownSessionError, match="'a'"):
        stream.fuse(2, 0, [Segment("a", 2, 1)], _rows(1))
    stream.open(["a"])
    _step(stream, 3, [Segment("a", 0, 1), Segment("b", 1, 1)], [_rows(2)] * 3)


def test_sessions_of_two_streams_do_not_meet(side, stream) -> None:
    backend, connect = side
    other = connect()
    stream.open(["a"])
    other.open(["a"])
    assert backend.num_sessions == 2
    stream.fuse(1, 0, [Segment("a", 0, 2)], _rows(2))
    other.fuse(1, 0, [Segment("a", 0, 1)], _rows(1))
    other.end()
    stream.fuse(1, 1, [Segment("a", 0, 2)], _rows(2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(["open", "fuse", "crop", "close", "read_out"]),
            st.integers(0, 2),
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        max_size=25,
    )
)
def test_any_order_of_calls_ends_in_a_typed_error_or_a_reply(side, actions) -> None:
    backend, connect = side
    stream, step = connect(), 0
    for action, session, number, rows in actions:
        name = f"s{session}"
        try:
            if action == "open":
                stream.open([name])
            elif action == "fuse":
                step += number == 0
                stream.fuse(step, number, [Segment(name, rows, rows)], _rows(rows))
            elif action == "crop":
                stream.crop(name, number)
            elif action == "close":
                stream.close([name])
            else:
                stream.read_out(step, [name] * rows, _rows(rows), _features(rows))
        except BraidError as error:
            assert type(error) is not BraidError
    stream.end()
    _wait_until_free(backend)
