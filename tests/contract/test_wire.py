"""The bytes on the wire. A client built yesterday, or in another language, must be understood tomorrow."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from braid_rpc.cards import PROTOCOL_VERSION
from braid_rpc.shard_messages import close_request, crop_request, open_request, step_request
from braid_rpc.steps import OpenSession, Segment, SpanStep
from braid_rpc.tensor import encode_tensor
from braid_rpc.v1 import braid_pb2, fusion_pb2, shard_pb2, tensor_pb2

STEP = SpanStep(
    step_id=7,
    start_layer=0,
    end_layer=4,
    final=False,
    segments=(Segment("s", 5, 2),),
    token_ids=np.array([1, 258], np.int64),
    logit_rows=(1,),
)
ROW = encode_tensor(np.array([[1.0, -2.0]], np.float32))

GOLDEN: dict[str, tuple[Any, str]] = {
    "tensor": (ROW, "0801120201021a080000803f000000c0"),
    "open": (open_request([OpenSession("s", 9, 3)]), "12090a070a01731009 1803"),
    "first span": (
        step_request(STEP, encode_tensor),
        "1a29 0807 1804 2a07 0a0173 1005 1802 3217 0805 120102 1a10 0100000000000000 0201000000000000 3a0101",
    ),
    "later span": (
        step_request(SpanStep(7, 4, 6, True, hidden=np.array([[1.0, -2.0]], np.float32)), encode_tensor),
        "1a1a 0807 1004 1806 2001 4210 0801 12020102 1a080000803f000000c0",
    ),
    "crop": (crop_request("s", 3), "2205 0a0173 1003"),
    "close": (close_request(["s"]), "2a03 0a0173"),
    "frame": (
        shard_pb2.ShardReply(
            id=2,
            frame=shard_pb2.Frame(hidden=ROW, cache_bytes_free=5),
            timings=tensor_pb2.StepTimings(compute_us=1, wait_us=2, serialize_us=3),
        ),
        "0802 1a14 0a10 0801 12020102 1a080000803f000000c0 1805 3a06 080110021803",
    ),
    "error": (
        shard_pb2.ShardReply(id=2, error=tensor_pb2.Error(type="E", message="m", retry_after_s=1.0)),
        "0802 320f 0a0145 12016d 19000000000000f03f",
    ),
    "fuse": (
        fusion_pb2.FusionRequest(id=1, fuse=fusion_pb2.Fuse(step_id=7, point=2, states=[ROW])),
        "0801 1a16 0807 1002 2210 0801 12020102 1a080000803f000000c0",
    ),
    "generate": (
        braid_pb2.GenerateRequest(text="hi", sampling=braid_pb2.SamplingOptions(temperature=0.0)),
        "12026869 2209 190000000000000000",
    ),
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_bytes_are_those_of_protocol_version_1(name: str) -> None:
    message, golden = GOLDEN[name]
    raw = bytes.fromhex(golden)
    assert PROTOCOL_VERSION == 1, "a new version needs golden bytes of its own"
    assert type(message).FromString(raw) == message
    assert message.SerializeToString(deterministic=True).hex() == raw.hex()


def loaded_setting(environment: dict[str, str]) -> str:
    code = "import braid_services, sys; print('grpc' in sys.modules, __import__('os').environ['GRPC_EXPERIMENTS'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_services_ask_grpc_for_fewer_threads_before_it_is_loaded() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    assert loaded_setting(environment) == "False -event_engine_listener"
    assert loaded_setting({**environment, "GRPC_EXPERIMENTS": "mine"}) == "False mine"
