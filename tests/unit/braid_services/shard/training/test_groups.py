"""A call is run in groups of whole sequences, which changes no number of it; who is served waits for one of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import byte_tokenizer, tiny_llama
from programs import eventually
from torch import Tensor

from braid_rpc.errors import FrameError, RequestCancelledError, ShapeMismatchError
from braid_rpc.steps import OpenSession, Segment, SpanStep
from braid_rpc.training import HeadInputs, SpanInputs, SpanOutputs
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.training.graphs import GroupGraph
from braid_services.shard.training.groups import make_groups
from braid_services.shard.turns import LONGEST_WAIT_S, ComputeLock, TrainingTurns, always_wanted

# Of the largest value: the same sums in float32, by kernels for other numbers of rows.
TOLERANCE = 1e-6
WAIT_S = 30.0
TURN_ROWS = 8
# By 8 rows: the first, two that fit together exactly, one that is too long for any group, two that don't fill one.
LENGTHS = (3, 7, 1, 12, 2, 5)
GROUPS = [(3,), (7, 1), (12,), (2, 5)]
NUM_ROWS, VOCAB = sum(LENGTHS), 262
MODEL = tiny_llama(1)
WAYS = ("forward", "backward", "backward of what is gone")


def backend_of(turn_rows: int, model: Any = MODEL, **changes: Any) -> ShardBackend:
    config = ShardConfig("tiny", "tiny", training_turn_rows=turn_rows, **changes)
    return ShardBackend.from_model(model, byte_tokenizer(), config)


@pytest.fixture
def backend() -> ShardBackend:
    return backend_of(TURN_ROWS)


def head_at(rows: Tensor | None) -> HeadInputs[Tensor]:
    num_rows = NUM_ROWS if rows is None else rows.shape[0]
    targets_R = torch.arange(num_rows) * 7 % VOCAB
    return HeadInputs(rows, targets_R, VOCAB - 1, want_features=True, want_logits=True)


HEADS = {
    "in the middle": None,
    "all rows": head_at(None),
    # Some twice, and none of the third group's.
    "rows in any order": head_at(torch.tensor([25, 4, 0, 29, 4, 9, 23, 2])),
    "no rows": head_at(torch.zeros(0, dtype=torch.int64)),
}


def span(head: HeadInputs[Tensor] | None = None, lengths: tuple[int, ...] = LENGTHS) -> SpanInputs[Tensor]:
    num_rows = sum(lengths)
    states_TD = torch.randn(num_rows, 32, generator=torch.Generator().manual_seed(0))
    return SpanInputs(1, 2 if head is None else 3, lengths, torch.arange(num_rows) % VOCAB, states_TD, head)


def gradients_of(outputs: SpanOutputs[Tensor]) -> SpanOutputs[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return SpanOutputs(
        **{name: torch.randn(value.shape, generator=generator) for name, value in outputs.items()}
    )


def assert_close(got: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max()) if expected.any() else 1.0
    torch.testing.assert_close(got / scale, expected / scale, atol=TOLERANCE, rtol=0)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20), max_rows=st.integers(1, 20))
def test_groups_are_all_whole_sequences_in_order_and_as_few_as_rows_allow(
    lengths: list[int], max_rows: int
) -> None:
    inputs = span(None, tuple(lengths))
    groups = make_groups(inputs, max_rows)
    assert [length for group in groups for length in group.inputs.lengths] == lengths
    assert torch.equal(torch.cat([group.inputs.token_ids for group in groups]), inputs.token_ids)
    assert all(sum(group.inputs.lengths) <= max_rows or len(group.inputs.lengths) == 1 for group in groups)
    for group, following in pairwise(groups):
        assert sum(group.inputs.lengths) + following.inputs.lengths[0] > max_rows


@pytest.mark.parametrize("where", HEADS)
def test_groups_give_what_the_call_at_once_gives(backend: ShardBackend, where: str) -> None:
    inputs = span(HEADS[where])
    assert [group.inputs.lengths for group in make_groups(inputs, TURN_ROWS)] == GROUPS
    at_once = backend_of(NUM_ROWS)
    expected = at_once.training.forward(inputs, "x").outputs
    got = backend.training.forward(inputs, "x").outputs
    without_graph = backend.training.forward(inputs).outputs
    assert [name for name, _ in got.items()] == [name for name, _ in expected.items()]
    for name, value in expected.items():
        assert_close(getattr(got, name), value)
        assert_close(getattr(without_graph, name), value)
    gradients = gradients_of(expected)
    expected_TD = at_once.training.backward("x", gradients).hidden
    got_TD = backend.training.backward("x", gradients).hidden
    assert_close(got_TD, expected_TD)
    assert torch.equal(backend.training.backward("gone", gradients, inputs).hidden, got_TD)


def test_the_same_call_is_the_same_to_the_bit(backend: ShardBackend) -> None:
    inputs = span(HEADS["all rows"])
    one, other = (backend.training.forward(inputs, name).outputs for name in "ab")
    assert all(torch.equal(value, getattr(other, name)) for name, value in one.items())


def test_the_embedding_is_run_in_groups_too(backend: ShardBackend) -> None:
    inputs = replace(span(), start_layer=0, end_layer=0, hidden=None)
    hidden_TD = backend.training.forward(inputs).outputs.hidden
    assert torch.equal(hidden_TD, MODEL.get_input_embeddings()(inputs.token_ids))


def test_gradients_of_another_shape_are_refused(backend: ShardBackend) -> None:
    inputs = span(HEADS["rows in any order"])
    backend.training.forward(inputs, "x")
    gradients = SpanOutputs(logits=torch.zeros(NUM_ROWS, VOCAB))
    for graph_id in ("x", "gone"):
        with pytest.raises(ShapeMismatchError, match=r"logits: got \(30, 262\), expected \(8, 262\)"):
            backend.training.backward(graph_id, gradients, inputs)


def test_graphs_of_all_groups_come_and_go_as_one_of_the_call(backend: ShardBackend) -> None:
    inputs = span(HEADS["all rows"])
    at_once = backend_of(NUM_ROWS).training
    gradients = gradients_of(at_once.forward(inputs, "x").outputs)
    backend.training.forward(inputs, "x")
    size = backend.training.graphs.num_bytes
    assert size == pytest.approx(at_once.graphs.num_bytes, rel=0.01)
    training = backend_of(TURN_ROWS, training_bytes=2 * size - 1).training
    for name in "xy":
        training.forward(inputs, name)
        assert len(training.graphs) == 1 and training.graphs.num_bytes == size
    assert training.backward("x", gradients).hidden is None
    assert training.backward("y", gradients).hidden is not None
    assert len(training.graphs) == training.graphs.num_bytes == 0


LABELS = HeadInputs(targets=torch.arange(NUM_ROWS) * 7 % VOCAB, want_features=True)


def test_without_room_for_graphs_or_logits_a_call_gives_the_same(backend: ShardBackend) -> None:
    inputs = span(LABELS)
    bare = backend_of(TURN_ROWS, training_bytes=0).training
    expected = backend.training.forward(inputs, "x").outputs
    got = bare.forward(inputs, "x").outputs
    assert all(torch.equal(getattr(got, name), value) for name, value in expected.items())
    assert len(bare.graphs) == 0
    gradients = gradients_of(expected)
    expected_TD = backend.training.backward("x", gradients).hidden
    assert bare.backward("x", gradients).hidden is None
    assert torch.equal(bare.backward("x", gradients, inputs).hidden, expected_TD)


def test_logits_that_are_asked_for_are_bounded_in_all_groups_together() -> None:
    size = NUM_ROWS * VOCAB * 4
    inputs = span(HEADS["all rows"])
    backend_of(TURN_ROWS, training_bytes=size).training.forward(inputs)
    tight = backend_of(TURN_ROWS, training_bytes=size - 1).training
    said = rf"logits of 30 rows take {size} bytes, expected at most {size - 1}; .*\(--batch\).*training_bytes"
    with pytest.raises(FrameError, match=said):
        tight.forward(inputs)
    with pytest.raises(FrameError, match=said):
        tight.backward("x", SpanOutputs(logits=torch.zeros(NUM_ROWS, VOCAB)), inputs)
    # Those of a turn may always be there: so many rows, or one sequence that is longer.
    bare = backend_of(TURN_ROWS, training_bytes=0).training
    for lengths in ((3, 5), (12,)):
        bare.forward(span(HeadInputs(want_logits=True), lengths))
    with pytest.raises(FrameError, match=rf"logits of 9 rows .* expected at most {8 * VOCAB * 4};"):
        bare.forward(span(HeadInputs(want_logits=True), (4, 5)))


def test_rows_that_are_asked_for_many_times_are_bounded_in_their_group() -> None:
    rows = torch.tensor([25] * 13)
    head = HeadInputs(rows, torch.zeros_like(rows))
    backend_of(TURN_ROWS, training_bytes=13 * VOCAB * 4).training.forward(span(head))
    tight = backend_of(TURN_ROWS, training_bytes=0).training
    with pytest.raises(FrameError, match=rf"logits of 13 rows .* expected at most {12 * VOCAB * 4};"):
        tight.forward(span(head))


def test_of_a_call_that_runs_no_more_groups_have_graphs_than_there_is_room_for(
    backend: ShardBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = span(HEADS["all rows"])
    backend.training.forward(inputs, "x")
    # Room for the first two groups.
    training = backend_of(TURN_ROWS, training_bytes=backend.training.graphs.num_bytes // 2).training
    made: list[weakref.ref[Tensor]] = []
    there: list[int] = []
    run = training._run

    def note(*args: Any) -> GroupGraph:
        there.append(sum(leaf() is not None for leaf in made))
        graph = run(*args)
        made.append(weakref.ref(graph.hidden_TD))
        return graph

    monkeypatch.setattr(training, "_run", note)
    outputs = training.forward(inputs, "x").outputs
    assert there == [0, 1, 2, 0] and len(training.graphs) == 0
    training.backward("x", gradients_of(outputs), inputs)
    assert there[4:] == [0, 0, 0, 0]


def run_call(
    backend: ShardBackend,
    way: str,
    on_group: Callable[[], None],
    check_wanted: Callable[[], None] = always_wanted,
) -> None:
    """A call with a head; ``on_group`` is called in each of its groups, where it is run on this thread."""
    inputs = span(HEADS["all rows"])
    with watched(backend, way, on_group):
        if way == "forward":
            backend.training.forward(inputs, "x", check_wanted=check_wanted)
            return
        gradients = gradients_of(backend.training.forward(inputs, "x").outputs)
        if way == "backward of what is gone":
            backend.training.graphs.clear()
        backend.training.backward("x", gradients, inputs, check_wanted)


@contextmanager
def watched(backend: ShardBackend, way: str, on_group: Callable[[], None]) -> Iterator[None]:
    own = threading.get_ident()

    def note(*_: Any) -> None:
        if threading.get_ident() == own:
            on_group()

    layer = backend.spans.layers[-1]
    hook = layer.register_forward_pre_hook if way == "forward" else layer.register_full_backward_pre_hook
    handle = hook(note)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("way", WAYS)
def test_who_is_served_waits_for_one_group_of_a_call(way: str) -> None:
    backend = backend_of(TURN_ROWS, training_share=1.0)
    order: list[str] = []
    is_open, asks = threading.Event(), threading.Event()

    def serve() -> None:
        stream = backend.stream()
        stream.open([OpenSession("a", 4, 3)])
        is_open.set()
        asks.wait(WAIT_S)
        stream.step(SpanStep(1, 0, 3, True, (Segment("a", 0, 4),), torch.arange(4), (3,)))
        order.append("served")
        stream.end()

    def on_group() -> None:
        order.append("training")
        if len(order) == 1:
            asks.set()
            eventually(lambda: backend.spans.lock.is_serving(float("inf")), WAIT_S, "the step waits")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert is_open.wait(WAIT_S)
        run_call(backend, way, on_group)
    finally:
        asks.set()
        thread.join(WAIT_S)
    assert order == ["training", "served", "training", "training", "training"]


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_nobody_wants_any_more_ends_between_its_groups(backend: ShardBackend, way: str) -> None:
    groups: list[str] = []

    def check_wanted() -> None:
        if len(groups) == 2:
            raise RequestCancelledError("gone")

    with pytest.raises(RequestCancelledError):
        run_call(backend, way, lambda: groups.append(way), check_wanted)
    assert len(groups) == 2
    assert len(backend.training.graphs) == 0 and not backend.spans.lock.locked()
    run_call(backend, way, lambda: None)  # the next one has its turns


@pytest.mark.parametrize("way", WAYS)
def test_training_keeps_to_its_share_between_the_groups_of_a_call(way: str) -> None:
    backend = backend_of(TURN_ROWS, tiny_llama(1), training_share=0.25)
    now_s = [0.0]
    lock = ComputeLock(lambda: now_s[0])

    def sleep(seconds: float) -> None:
        now_s[0] += seconds
        with lock.serving():  # somebody is served all the time
            pass

    def work() -> None:
        now_s[0] += 0.5

    backend.spans.lock, backend.spans.training_turns = (
        lock,
        TrainingTurns(lock, clock=lambda: now_s[0], sleep=sleep),
    )
    with lock.serving():
        pass
    run_call(backend, way, work)
    # Four groups, and after each but the last a rest of three times as long.
    assert now_s[0] == pytest.approx(4 * 0.5 + 3 * 1.5, abs=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_in_many_turns_a_call_waits_no_longer_where_somebody_always_waits(way: str) -> None:
    backend = backend_of(TURN_ROWS, tiny_llama(1))
    now_s = [0.0]
    lock = ComputeLock(lambda: now_s[0])
    backend.spans.lock, backend.spans.training_turns = lock, TrainingTurns(lock, clock=lambda: now_s[0])

    def check_wanted() -> None:  # now and then while a call waits
        now_s[0] += 0.01

    gradients = gradients_of(backend.training.forward(span(), "x").outputs)
    lock._num_waiting = 1
    if way == "forward":
        backend.training.forward(span(), "y", check_wanted=check_wanted)
    else:
        graph_id = "x" if way == "backward" else "gone"
        backend.training.backward(graph_id, gradients, span(), check_wanted)
    assert now_s[0] == pytest.approx(LONGEST_WAIT_S, abs=0.2)


def test_a_shard_serves_while_it_steps_and_not_by_what_a_braid_does_that_nobody_asks() -> None:
    backend = backend_of(TURN_ROWS, tiny_llama(1))
    now_s = [100.0]
    backend.spans.lock = lock = ComputeLock(lambda: now_s[0])
    stream = backend.stream()
    stream.open([OpenSession("a", 4, 3)])
    stream.close([])  # how an engine without work sees whether its shard is there
    stream.crop("a", 0)
    assert not lock.is_serving(now_s[0])
    stream.step(SpanStep(1, 0, 3, True, (Segment("a", 0, 4),), torch.arange(4), (3,)))
    assert lock.is_serving(now_s[0])
    for _ in range(3):
        now_s[0] += 5.0
        stream.close([])
        assert not lock.is_serving(now_s[0])
    stream.end()
