"""Whatever arrives on a stream is answered with a result or a typed error, and leaves nothing behind.

Messages are made from the protocol's own descriptors, with values near the valid ones and far from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_backend

import braid_rpc.errors
from braid_fusion.plan import BraidPlan, PlanPoint, PlanReadout, PlanShard
from braid_rpc.tensor import encode_tensor
from braid_rpc.v1 import fusion_pb2, shard_pb2, tensor_pb2
from braid_services.fusion.backend import FusionBackend
from braid_services.fusion.servicer import FusionServicer
from braid_services.shard.backend import ShardBackend
from braid_services.shard.servicer import ShardServicer

WIDTH, LAYERS = 32, 3
TYPED = {name for name, value in vars(braid_rpc.errors).items() if isinstance(value, type)}
SMALL = st.sampled_from([0, 0, 1, 1, 2, 3, LAYERS, 7])
HUGE = st.sampled_from([2**31 - 1, 2**32 - 1])
NAMES = st.sampled_from(["a", "a", "b", "c", "", "\x00", "x" * 500])


def tensors() -> st.SearchStrategy[tensor_pb2.Tensor]:
    rows = st.integers(0, 4)
    good = st.one_of(
        rows.map(lambda n: np.zeros(n, np.int64)),
        rows.map(lambda n: np.full((n, WIDTH), 0.5, np.float32)),
        st.tuples(rows, rows).map(lambda shape: np.full((shape[0], 2, 3), 0.1, np.float32)),
        rows.map(lambda n: np.full((n, 6), np.inf, np.float32)),
    ).map(encode_tensor)
    broken = st.builds(
        tensor_pb2.Tensor,
        dtype=st.integers(0, 9),
        shape=st.lists(st.one_of(SMALL, HUGE), max_size=4),
        data=st.binary(max_size=40),
        scales=st.binary(max_size=9),
    )
    return st.one_of(good, good, broken)


def messages(descriptor: Descriptor, kind: type[Message]) -> st.SearchStrategy[Any]:
    """Any message of a type; fields are left out as often as not."""

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        fields: dict[str, Any] = {}
        chosen = {
            oneof.name: draw(st.sampled_from([None, *(f.name for f in oneof.fields)]))
            for oneof in descriptor.oneofs
        }
        for field in descriptor.fields:
            inside = field.containing_oneof
            if inside is not None and chosen[inside.name] != field.name:
                continue
            if inside is None and draw(st.integers(0, 3)) == 0:
                continue
            value = values(field)
            fields[field.name] = draw(st.lists(value, max_size=4) if field.is_repeated else value)
        return kind(**fields)

    return build()


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        inner = field.message_type
        if inner.full_name.endswith(".Tensor"):
            return tensors()
        return messages(inner, inner._concrete_class)
    if field.type == FieldDescriptor.TYPE_STRING:
        return NAMES
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.integers(0, 9)
    if field.type in (FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_INT32):
        return st.one_of(st.sampled_from([-1, -1, 0, 1, 2]), st.sampled_from([-(2**31), 2**31 - 1]))
    return st.one_of(SMALL, SMALL, SMALL, HUGE)


def assert_answered(replies: Iterator[Any], requests: list[Any]) -> None:
    for request, reply in zip(requests, replies, strict=True):
        assert reply.id == request.id
        if reply.WhichOneof("result") == "error":
            assert reply.error.type in TYPED
            assert "unexpected error" not in reply.error.message, reply.error.message


def step(step_id: int, session: str, ids: list[int]) -> shard_pb2.ShardRequest:
    segment = tensor_pb2.Segment(session_id=session, position=0, num_rows=len(ids))
    return shard_pb2.ShardRequest(
        step=shard_pb2.Step(
            step_id=step_id,
            start_layer=0,
            end_layer=LAYERS,
            final=True,
            segments=[segment],
            token_ids=encode_tensor(np.array(ids, np.int64)),
            logit_rows=[len(ids) - 1],
        )
    )


@pytest.fixture(scope="module")
def backend() -> ShardBackend:
    return tiny_backend("fuzzed", 1, width=WIDTH, num_layers=LAYERS)


@settings(max_examples=150)
@given(
    requests=st.lists(messages(shard_pb2.ShardRequest.DESCRIPTOR, shard_pb2.ShardRequest), max_size=8),
    opened=st.lists(st.sampled_from(["a", "b"]), unique=True),
)
def test_a_shard_answers_anything(requests: list[Any], opened: list[str], backend: ShardBackend) -> None:
    servicer = ShardServicer(backend)
    free = backend.card.cache_bytes_free
    first = [
        shard_pb2.ShardRequest(
            open=shard_pb2.OpenSessions(sessions=[shard_pb2.OpenSession(session_id=name, num_tokens=4)])
        )
        for name in opened
    ]
    everything = [*first, *requests]
    assert_answered(servicer.Run(iter(everything), None), everything)
    assert backend.card.cache_bytes_free == free
    fine = [
        shard_pb2.ShardRequest(
            open=shard_pb2.OpenSessions(sessions=[shard_pb2.OpenSession(session_id="z", num_tokens=4)])
        ),
        step(1, "z", [1, 2, 3]),
    ]
    *_, last = servicer.Run(iter(fine), None)
    assert last.WhichOneof("result") == "frame"


def plan(hashes: tuple[str, ...]) -> BraidPlan:
    return BraidPlan(
        shards=tuple(PlanShard(f"s{i}", WIDTH, 4, 20, f"m{i}", name) for i, name in enumerate(hashes)),
        anchor=0,
        points=(
            PlanPoint("1", (1,) * len(hashes), "attention", 8),
            PlanPoint("2", (2,) * len(hashes), "mlp", 8),
        ),
        readout=PlanReadout("gate"),
    )


@pytest.mark.parametrize("hashes", [("t", "t"), ("t", "u")], ids=["one tokenizer", "two tokenizers"])
@settings(max_examples=150)
@given(
    requests=st.lists(messages(fusion_pb2.FusionRequest.DESCRIPTOR, fusion_pb2.FusionRequest), max_size=8),
    opened=st.lists(st.sampled_from(["a", "b"]), unique=True),
)
def test_the_fusion_service_answers_anything(
    hashes: tuple[str, ...], requests: list[Any], opened: list[str]
) -> None:
    backend = FusionBackend()
    backend.prepare(plan(hashes))
    servicer = FusionServicer(backend)
    first = (
        [fusion_pb2.FusionRequest(open=fusion_pb2.OpenFusionSessions(session_ids=opened))] if opened else []
    )
    everything = [*first, *requests]
    assert_answered(servicer.Run(iter(everything), None), everything)
    assert (backend.num_sessions, backend.status().cache_bytes) == (0, 0)


@settings(max_examples=200)
@given(
    lanes=st.lists(messages(fusion_pb2.Lane.DESCRIPTOR, fusion_pb2.Lane), min_size=2, max_size=2),
    counts=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_rows_of_lanes_that_do_not_fit_are_refused(lanes: list[Any], counts: tuple[int, int]) -> None:
    """States of the right shapes, so that nothing but what is said of the lanes can be wrong."""
    backend = FusionBackend()
    backend.prepare(plan(("t", "u")))
    segments = [tensor_pb2.Segment(session_id="a", position=0, num_rows=counts[0])]
    lanes[1].segments.clear()
    lanes[1].segments.append(tensor_pb2.Segment(session_id="a", position=0, num_rows=counts[1]))
    fuse = fusion_pb2.Fuse(
        step_id=1,
        point=0,
        segments=segments,
        lanes=lanes,
        states=[encode_tensor(torch.randn(count, WIDTH).numpy()) for count in counts],
    )
    requests = [
        fusion_pb2.FusionRequest(id=1, open=fusion_pb2.OpenFusionSessions(session_ids=["a"])),
        fusion_pb2.FusionRequest(id=2, fuse=fuse),
    ]
    replies = list(FusionServicer(backend).Run(iter(requests), None))
    assert_answered(iter(replies), requests)
