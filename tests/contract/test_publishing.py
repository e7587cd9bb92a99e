"""What taking in a version of the weights must hold, in process and over gRPC: one suite for both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
import torch
from braids import shake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import eventually

from braid_fusion.packed_weights import PackedWeights, pack_stack
from braid_fusion.plan import BraidPlan, PlanPoint, PlanReadout, PlanShard
from braid_fusion.stack import FusionStack
from braid_fusion.weights import read_packed, save_stack
from braid_rpc.errors import (
    CapacityError,
    ConflictError,
    InvalidRequestError,
    StorageError,
    UnknownVersionError,
    WeightMismatchError,
)
from braid_rpc.fusion_client import FusionClient
from braid_rpc.publishing import MAX_CARD_BYTES, PublishedVersion
from braid_rpc.v1 import fusion_pb2
from braid_services.fusion.backend import MAX_UPLOADS, FusionBackend
from braid_services.fusion.servicer import FusionServicer
from braid_services.serving import start_server

PLAN = BraidPlan(
    shards=(PlanShard("code", 6, 6, 20, "m0", "t"), PlanShard("prose", 8, 8, 20, "m1", "t")),
    anchor=0,
    points=(PlanPoint("1", (1, 1), "mlp", 4, receivers=(0, 1)), PlanPoint("2", (2, 2), "router", 4)),
    readout=PlanReadout("gate"),
)
BAD_NAMES = [
    "../x",
    "..",
    ".",
    ".hidden",
    "a/b",
    "/etc",
    "a\\b",
    "ä",
    "a b",
    "a\0b",
    "a\n",
    "-x",
    "x" * 129,
    "~",
]


def trained(seed: int, plan: BraidPlan = PLAN) -> FusionStack:
    stack = FusionStack(plan)
    shake(stack, seed)
    return stack


def packed(seed: int, plan: BraidPlan = PLAN) -> PackedWeights:
    return pack_stack(trained(seed, plan), {"seed": seed})


def with_card(weights: PackedWeights, **changes: object) -> PackedWeights:
    return PackedWeights(json.dumps(json.loads(weights.card_json) | changes), weights.data)


@dataclasses.dataclass
class Side:
    """A backend with one version, ``v1``, and a way to publish to it."""

    backend: FusionBackend
    folder: Path | None
    publish: Callable[..., PublishedVersion]
    client: FusionClient | None = None
    target: str = ""

    def state(self) -> object:
        """All that must be as it was after an error."""
        names = sorted(os.listdir(self.folder)) if self.folder else []
        return names, self.backend.active_version, self.backend.versions.loaded, self.backend.list_versions()

    def weights_of_new_sessions(self) -> dict[str, torch.Tensor]:
        return self.backend.versions.stack(self.backend.active_version).state_dict()

    def serves(self, stack: FusionStack) -> bool:
        expected = stack.state_dict()
        return all(
            torch.equal(value, expected[name]) for name, value in self.weights_of_new_sessions().items()
        )


def make_side(kind: str, storage: str, folder: Path) -> Iterator[Side]:
    weights = None
    if storage == "on disk":
        weights = folder / "weights"
        save_stack(trained(1), weights / "v1")
    backend = FusionBackend(weights)
    backend.prepare(PLAN)
    if weights is None:
        first = packed(1)
        backend.publish(first.card_json, first.data, "v1")
    if kind == "in process":
        yield Side(backend, weights, lambda w, *args, **kw: backend.publish(w.card_json, w.data, *args, **kw))
        return
    with (
        start_server([FusionServicer(backend)], [f"unix:{folder}/s"]) as server,
        FusionClient(server.targets[0]) as client,
    ):
        target = server.targets[0]
        yield Side(
            backend,
            weights,
            lambda w, *args, **kw: client.publish(w.card_json, w.data, *args, **kw),
            client,
            target,
        )


KINDS = ["in process", "served"]


@pytest.fixture(params=KINDS)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    yield from make_side(request.param, "on disk", tmp_path)


@pytest.fixture(params=KINDS)
def in_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    yield from make_side(request.param, "in memory", tmp_path)


def test_a_version_is_written_as_it_was_sent_loaded_and_active(side: Side) -> None:
    weights = packed(2)
    assert side.publish(weights, "v2") == PublishedVersion("v2", "v2", in_memory_only=False)
    assert side.folder is not None
    assert read_packed(side.folder / "v2") == weights
    assert sorted(os.listdir(side.folder)) == ["v1", "v2"]
    assert side.serves(trained(2))
    again = FusionBackend(side.folder)
    again.prepare(PLAN)
    assert again.active_version == "v2"
    assert [info.in_memory_only for info in side.backend.list_versions()] == [False] * 3


def test_it_may_come_without_being_activated(side: Side) -> None:
    assert side.publish(packed(2), "v2", activate=False).active_version == "v1"
    assert side.serves(trained(1))
    side.backend.activate("v2")
    assert side.serves(trained(2))


def test_a_name_that_is_left_open_is_the_same_for_the_same_weights_and_sorts_by_time(side: Side) -> None:
    early, late = (with_card(packed(seed), created_unix_s=1.8e9 + seed) for seed in (2, 3))
    first = side.publish(early).version
    second = side.publish(late).version
    assert first.startswith("20270115-080002-") and first < second
    assert side.publish(early).version == first
    listed = [info.version for info in side.backend.list_versions()]
    assert [name for name in listed if name not in ("untrained", "v1")] == [first, second]
    assert side.backend.active_version == first


def test_the_same_again_is_harmless_and_may_activate(side: Side) -> None:
    weights = packed(2)
    side.publish(weights, "v2", activate=False)
    state = side.state()
    assert side.publish(weights, "v2", activate=False).active_version == "v1"
    assert side.state() == state
    assert side.publish(weights, "v2").active_version == "v2"
    assert side.serves(trained(2))


@pytest.mark.parametrize("other", ["weights", "card"])
def test_another_version_of_the_same_name_is_refused(side: Side, other: str) -> None:
    weights = packed(2)
    side.publish(weights, "v2", activate=False)
    state = side.state()
    different = packed(3) if other == "weights" else with_card(weights, training={"seed": 4})
    for name in ("v2", "untrained"):
        with pytest.raises(ConflictError, match="is there already with another card or other weights"):
            side.publish(different, name)
    assert side.state() == state


def test_weights_of_another_braid_are_refused_with_both_sides_named(side: Side) -> None:
    state = side.state()
    shards = (dataclasses.replace(PLAN.shards[0], model_hash="other"), PLAN.shards[1])
    with pytest.raises(
        WeightMismatchError,
        match=r"shards\[0\]\.model_hash: the weights have 'other', this braid has 'm0'",
    ):
        side.publish(packed(2, dataclasses.replace(PLAN, shards=shards)), "v2")
    with pytest.raises(WeightMismatchError, match="the weights have 'mixture', this braid has 'gate'"):
        side.publish(packed(2, dataclasses.replace(PLAN, readout=PlanReadout("mixture"))))
    assert side.state() == state
    side.publish(packed(2, dataclasses.replace(PLAN, seed=9)), "v2")  # the seed doesn't count


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(side: Side, name: str) -> None:
    state = side.state()
    with pytest.raises(InvalidRequestError, match="version: got"):
        side.publish(packed(2), name)
    assert side.state() == state
    assert not (side.folder.parent / "x").exists()  # type: ignore[union-attr]


def damaged(weights: PackedWeights) -> dict[str, tuple[PackedWeights, str]]:
    """Weights with what is said of them, in words of the message."""
    data = weights.data
    flipped = bytes([*data[:-1], data[-1] ^ 1])

    def saying_so(other: bytes) -> PackedWeights:
        return PackedWeights(
            with_card(weights, weights_sha256=hashlib.sha256(other).hexdigest()).card_json, other
        )

    return {
        "a flipped bit": (PackedWeights(weights.card_json, flipped), "weights_sha256"),
        "half of it": (PackedWeights(weights.card_json, data[: len(data) // 2]), "weights_sha256"),
        "nothing": (PackedWeights(weights.card_json, b""), "weights_sha256"),
        "half of it, and its card knows": (saying_so(data[: len(data) // 2]), "not a safetensors file"),
        "no safetensors": (saying_so(b"no tensors at all"), "not a safetensors file"),
        "nothing, and its card knows": (saying_so(b""), "not a safetensors file"),
        "other tensors": (saying_so(packed(2, _smaller()).data), "expected torch.float32"),
        "too much": (saying_so(bytes(200_000)), "got 200000 bytes, expected at most"),
        "no card": (PackedWeights("", data), "not a weight card"),
        "a card that is none": (PackedWeights("[]", data), "not a weight card"),
        "a card without end": (PackedWeights("[" * 100_000, data), "not a weight card"),
        "a card of another format": (with_card(weights, format=2), "card format 2"),
        "a card from nowhen": (with_card(weights, created_unix_s=float("nan")), "created_unix_s"),
        "a card of the far future": (with_card(weights, created_unix_s=1e300), "created_unix_s"),
        "a card that is no text": (PackedWeights('{"format": "\ud800"}', data), "not Unicode"),
        "a card that is too large": (with_card(weights, training="x" * MAX_CARD_BYTES), "card: got"),
    }


def _smaller() -> BraidPlan:
    return dataclasses.replace(
        PLAN, points=tuple(dataclasses.replace(point, fusion_width=2) for point in PLAN.points)
    )


@pytest.mark.parametrize("damage", damaged(packed(2)))
def test_damaged_weights_are_refused_and_nothing_has_changed(side: Side, damage: str) -> None:
    state = side.state()
    weights, words = damaged(packed(2))[damage]
    for name in ("v2", ""):
        with pytest.raises(InvalidRequestError, match=words):
            side.publish(weights, name)
    assert side.state() == state
    assert side.serves(trained(1))
    side.publish(packed(2), "v2")


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(cut=st.integers(0, 60), at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_whatever_the_bytes_are_it_is_whole_or_not_there(cut: int, at: int, value: int) -> None:
    """With a card that says the damaged bytes are right, so that nothing but the tensors can be wrong."""
    data = bytearray(packed(2).data)
    at %= 600  # safetensors' header is there; behind it any bits are numbers
    data[at] = value
    del data[len(data) - cut :]
    card = with_card(packed(2), weights_sha256=hashlib.sha256(data).hexdigest()).card_json
    backend = FusionBackend()
    backend.prepare(PLAN)
    try:
        backend.publish(card, bytes(data), "v2")
    except InvalidRequestError:
        assert [info.version for info in backend.list_versions()] == ["untrained"]
    else:
        assert backend.active_version == "v2"


def test_a_full_disk_is_told_and_leaves_nothing(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    state = side.state()
    calls = []

    def fail(number: int) -> None:
        calls.append(number)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.fsync", fail)  # by then half of it is there
        with pytest.raises(StorageError, match=r"'v2' cannot be written.*No space left on device"):
            side.publish(packed(2), "v2")
    assert calls
    assert side.state() == state
    side.publish(packed(2), "v2")
    assert side.serves(trained(2))


def test_where_no_folder_is_versions_are_in_memory_and_it_is_said(in_memory: Side) -> None:
    side = in_memory
    assert side.publish(packed(2), "v2") == PublishedVersion("v2", "v2", in_memory_only=True)
    assert side.serves(trained(2))
    infos = {info.version: info for info in side.backend.list_versions()}
    assert {name: info.in_memory_only for name, info in infos.items()} == {
        "untrained": False,
        "v1": True,
        "v2": True,
    }
    assert json.loads(infos["v2"].card_json)["training"] == {"seed": 2}
    if side.client is not None:
        assert [card.in_memory_only for card in side.client.list_versions()] == [False, True, True]
    side.backend.activate("v1")
    side.backend.load("v2")
    assert side.serves(trained(1))
    with pytest.raises(ConflictError, match="'v2', which is there already"):
        side.publish(packed(3), "v2")
    with pytest.raises(UnknownVersionError, match="'v3', expected one of untrained, v1, v2"):
        side.backend.activate("v3")


def test_sessions_keep_the_version_that_they_began_with(side: Side) -> None:
    stream = side.backend.stream()
    assert stream.open(["old"]) == "v1"
    side.publish(packed(2), "v2")
    assert stream.open(["new"]) == "v2"
    assert stream.open(["again"], "v1") == "v1"
    assert stream._sessions["old"].stack is stream._sessions["again"].stack
    assert stream._sessions["old"].stack is not stream._sessions["new"].stack


def test_nothing_is_taken_in_before_a_plan_is_there() -> None:
    weights = packed(2)
    with pytest.raises(ConflictError, match="no plan is prepared"):
        FusionBackend().publish(weights.card_json, weights.data)


def test_two_who_publish_one_name_at_once_are_told_apart(side: Side) -> None:
    """One wins, the other is told; several of the same are all told the same."""
    for number in range(8):
        name = f"n{number}"
        same = number % 2 == 0
        with ThreadPoolExecutor(2) as threads:
            tries = {
                threads.submit(side.publish, packed_once(seed), name): seed
                for seed in ((5, 5) if same else (5, 6))
            }
        won = [seed for one, seed in tries.items() if one.exception() is None]
        lost = [error for one in tries if (error := one.exception()) is not None]
        assert len(won) == (2 if same else 1)
        assert all(isinstance(error, ConflictError) for error in lost), lost
        assert side.serves(trained(won[0]))
        assert read_packed(side.folder / name) == packed_once(won[0])  # type: ignore[operator]


_PACKED: dict[int, PackedWeights] = {}


def packed_once(seed: int) -> PackedWeights:
    """The same to the last bit of its card."""
    return _PACKED.setdefault(seed, packed(seed))


# --- the wire alone -----------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Side]:
    yield from make_side("served", "on disk", tmp_path)


def header(weights: PackedWeights, **changes: object) -> fusion_pb2.PublishPart:
    fields = {
        "version": "v2",
        "card_json": weights.card_json,
        "num_bytes": len(weights.data),
        "sha256": hashlib.sha256(weights.data).hexdigest(),
        "activate": True,
    }
    return fusion_pb2.PublishPart(header=fusion_pb2.PublishHeader(**fields | changes))


def data(chunk: bytes) -> fusion_pb2.PublishPart:
    return fusion_pb2.PublishPart(data=chunk)


def streams(weights: PackedWeights) -> dict[str, tuple[list[fusion_pb2.PublishPart], str]]:
    whole, half = weights.data, weights.data[: len(weights.data) // 2]
    return {
        "nothing": ([], "got no header"),
        "an empty part": ([fusion_pb2.PublishPart()], "got no header"),
        "no header": ([data(whole)], "got no header"),
        "two headers": ([header(weights), header(weights), data(whole)], "got a part without data"),
        "a part of nothing": ([header(weights), fusion_pb2.PublishPart()], "got a part without data"),
        "a header alone": ([header(weights)], f"got 0 bytes and no more, expected {len(whole)}"),
        "half of it": ([header(weights), data(half)], f"got {len(half)} bytes and no more"),
        "more than announced": (
            [header(weights), data(whole), data(b"x")],
            f"got {len(whole) + 1} bytes so far",
        ),
        "other bytes": ([header(weights), data(bytes(len(whole)))], "bytes of SHA-256"),
        "out of order": ([header(weights), data(whole[10:]), data(whole[:10])], "bytes of SHA-256"),
        "another SHA-256": ([header(weights, sha256="0" * 64), data(whole)], "weights_sha256"),
        "more than there is room": ([header(weights, num_bytes=2**60)], "expected at most"),
    }


@pytest.mark.parametrize("kind", streams(packed(2)))
def test_a_stream_that_is_damaged_leaves_nothing(served: Side, kind: str) -> None:
    assert served.client is not None
    state = served.state()
    parts, words = streams(packed_once(2))[kind]
    servicer = FusionServicer(served.backend)
    with pytest.raises(InvalidRequestError, match=words):
        servicer.PublishVersion(iter(parts), None)
    assert served.state() == state
    empty = [header(packed_once(2)), data(b""), data(packed_once(2).data), data(b"")]
    assert servicer.PublishVersion(iter(empty), None).version == "v2"


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    parts=st.lists(
        st.one_of(
            st.just(header(packed_once(2))),
            st.just(data(packed_once(2).data)),
            st.binary(max_size=20).map(data),
            st.builds(
                lambda **changes: header(packed_once(2), **changes),
                version=st.sampled_from(["v1", "v2", "", "../x", "untrained"]),
                num_bytes=st.sampled_from([0, 1, len(packed_once(2).data), 2**63]),
                sha256=st.sampled_from(["", "0" * 64, hashlib.sha256(packed_once(2).data).hexdigest()]),
                card_json=st.sampled_from(["", "{}", "[", packed_once(2).card_json]),
                activate=st.booleans(),
            ),
            st.just(fusion_pb2.PublishPart()),
        ),
        max_size=5,
    )
)
def test_the_service_answers_any_stream(parts: list[fusion_pb2.PublishPart]) -> None:
    backend = FusionBackend()
    backend.prepare(PLAN)
    servicer = FusionServicer(backend)
    try:
        servicer.PublishVersion(iter(parts), None)
    except (InvalidRequestError, ConflictError):
        assert [info.version for info in backend.list_versions()] == ["untrained"]
        assert backend.active_version == "untrained"
    for _ in range(MAX_UPLOADS):  # no place is lost
        assert backend._uploads.acquire(blocking=False)


def test_large_weights_travel_in_chunks_below_the_limit_of_a_message(tmp_path: Path) -> None:
    plan = dataclasses.replace(
        PLAN, points=tuple(dataclasses.replace(point, fusion_width=256) for point in PLAN.points)
    )
    weights = packed(2, plan)
    limit = 64 * 2**10
    assert len(weights.data) > 4 * limit
    backend = FusionBackend(tmp_path / "weights", "untrained")
    backend.prepare(plan)
    seen: list[tuple[int, int]] = []
    with (
        start_server([FusionServicer(backend)], [f"unix:{tmp_path}/s"], max_message_bytes=limit) as server,
        FusionClient(server.targets[0], max_message_bytes=limit) as client,
    ):
        client.publish(
            weights.card_json, weights.data, "v2", on_progress=lambda sent, total: seen.append((sent, total))
        )
    assert len(seen) > 8
    assert [sent for sent, _ in seen] == sorted({sent for sent, _ in seen})
    assert seen[-1] == (len(weights.data), len(weights.data))
    assert read_packed(tmp_path / "weights" / "v2") == weights


CLIENT = """
import sys, threading
from braid_rpc.channels import make_channel
from braid_rpc.v1 import fusion_pb2, fusion_pb2_grpc
message = fusion_pb2.PublishPart.FromString(sys.stdin.buffer.read())
half = message.header.num_bytes // 2
def parts():
    yield message
    yield fusion_pb2.PublishPart(data=bytes(half))
    print("half of it is sent", flush=True)
    threading.Event().wait()
fusion_pb2_grpc.FusionStub(make_channel(sys.argv[1])).PublishVersion(parts())
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_clients_that_die_in_the_middle_leave_nothing(served: Side, end: signal.Signals) -> None:
    state = served.state()
    clients = []
    try:
        for _ in range(MAX_UPLOADS):
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, served.target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            clients.append(client)
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(header(packed_once(2)).SerializeToString())
            client.stdin.close()
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == b"half of it is sent\n"
        with pytest.raises(CapacityError, match=f"{MAX_UPLOADS} versions are coming in") as refused:
            served.publish(packed_once(2), "v2")
        assert refused.value.retry_after_s > 0
        assert served.state() == state
    finally:
        for client in clients:
            client.send_signal(end)
            client.wait(30)
            for pipe in (client.stdin, client.stdout):
                assert pipe is not None
                pipe.close()

    def is_taken_in() -> bool:
        try:
            return served.publish(packed_once(2), "v2").active_version == "v2"
        except CapacityError:
            assert served.state() == state
            return False

    eventually(is_taken_in, 30.0, "the service has noticed that they are gone")
    assert sorted(os.listdir(served.folder)) == ["v1", "v2"]  # type: ignore[arg-type]
    for _ in range(MAX_UPLOADS):
        eventually(lambda: served.backend._uploads.acquire(blocking=False), 30.0, "every place is free")


def test_a_lost_answer_is_asked_for_again_and_nothing_comes_twice(served: Side) -> None:
    """The service takes it in, the answer never arrives, and the client's repeat finds it there."""

    class Forgetful(FusionServicer):
        calls = 0

        def PublishVersion(self, request_iterator, context):
            reply = super().PublishVersion(request_iterator, context)
            Forgetful.calls += 1
            if Forgetful.calls == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            return reply

    weights = packed_once(2)
    with (
        TemporaryDirectory() as folder,
        start_server([Forgetful(served.backend)], [f"unix:{folder}/s"]) as server,
        FusionClient(server.targets[0]) as client,
    ):
        published = client.publish(weights.card_json, weights.data)
    assert Forgetful.calls == 2
    assert sorted(os.listdir(served.folder)) == sorted(["v1", published.version])  # type: ignore[arg-type]
    assert published.active_version == published.version
