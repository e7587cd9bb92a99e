"""Kept graphs stay within their bytes and their time."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from programs import eventually

from braid_rpc.errors import UnsupportedModelError
from braid_rpc.training import SpanOutputs
from braid_services.shard.training.graphs import GroupGraph, KeptGraphs, SavedBytes, SpanGraph


def graph(num_bytes: int) -> SpanGraph:
    group = GroupGraph(torch.zeros(1), SpanOutputs(torch.zeros(1)), slice(0, 1))
    return SpanGraph([group], 1, num_bytes)


@given(
    max_bytes=st.integers(0, 40),
    actions=st.lists(
        st.one_of(st.tuples(st.sampled_from("abcd"), st.integers(0, 50)), st.sampled_from("abcd")),
        max_size=30,
    ),
)
def test_whatever_comes_it_stays_within_its_bytes(max_bytes: int, actions: list) -> None:
    kept = KeptGraphs(max_bytes, 1e6)
    newest: dict[str, SpanGraph] = {}
    for action in actions:
        if isinstance(action, str):
            found = kept.take(action)
            assert found is None or found is newest[action]
            assert kept.take(action) is None
        else:
            name, num_bytes = action
            newest[name] = graph(num_bytes)
            kept.keep(name, newest[name])
        assert kept.num_bytes <= max_bytes
        assert kept.num_bytes == sum(kept._graphs[name][0].num_bytes for name in kept._graphs)
    kept.clear()
    assert kept.num_bytes == len(kept) == 0


def test_room_is_taken_from_the_oldest() -> None:
    kept = KeptGraphs(10, 1e6)
    for name in "abc":
        kept.keep(name, graph(4))
    assert kept.take("a") is None
    assert kept.take("b") is not None and kept.take("c") is not None


def test_one_that_is_too_large_by_itself_drives_nobody_out() -> None:
    kept = KeptGraphs(10, 1e6)
    kept.keep("a", graph(4))
    kept.keep("b", graph(11))
    assert kept.take("b") is None and kept.take("a") is not None


def test_old_ones_go_also_when_nobody_calls() -> None:
    kept = KeptGraphs(100, 0.1)
    one = graph(1)
    gone = weakref.ref(one.groups[0].hidden_TD)
    kept.keep("a", one)
    del one
    eventually(lambda: gone() is None, 10.0, "the graph is freed")
    assert kept.num_bytes == 0


def test_what_autograd_saves_is_counted_once_and_weights_are_not() -> None:
    weight = torch.randn(16, 16)
    leaf = torch.randn(8, 16, requires_grad=True)
    saved = SavedBytes({weight.untyped_storage().data_ptr()})
    with saved.counting():
        hidden = leaf @ weight  # saves the weight alone
        squared = hidden * hidden  # saves one tensor twice
        out = torch.tanh(squared)  # saves its output
    assert saved.num_bytes == 2 * 8 * 16 * 4
    expected = torch.autograd.grad(torch.tanh((leaf @ weight) ** 2).sum(), leaf)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), leaf), expected)


def test_what_was_changed_in_place_since_is_refused_and_gives_no_wrong_gradient() -> None:
    leaf = torch.tensor([2.0], requires_grad=True)
    with SavedBytes(()).counting():
        doubled = 2 * leaf
        squared = doubled * doubled
        doubled.add_(1)
    with pytest.raises(UnsupportedModelError, match=r"\(1,\) .* in place: got version 1, expected 0"):
        torch.autograd.grad(squared.sum(), leaf)


def test_a_graph_is_freed_when_it_is_dropped() -> None:
    leaf = torch.randn(4, requires_grad=True)
    saved = SavedBytes(())
    with saved.counting():
        out = torch.softmax(torch.tanh(leaf), 0)
    gone = weakref.ref(out)
    gc.disable()  # not by the cycle collector
    try:
        del out
        assert gone() is None
    finally:
        gc.enable()


def test_a_span_that_is_kept_in_place_of_another_counts_once() -> None:
    kept = KeptGraphs(10, 1e6)
    kept.keep("a", graph(7))
    kept.keep("a", graph(8))
    assert kept.num_bytes == 8 and len(kept) == 1
