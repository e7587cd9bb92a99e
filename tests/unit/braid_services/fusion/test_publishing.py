"""What else a backend may meet while it takes in versions; the rest is in the contract suite."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from braid_fusion.packed_weights import PackedWeights, pack_stack
from braid_fusion.stack import FusionStack
from braid_fusion.weights import read_packed
from braid_rpc.errors import (
    CapacityError,
    ConflictError,
    InvalidRequestError,
    StorageError,
    UnknownVersionError,
)
from braid_services.fusion import versions
from braid_services.fusion.backend import MAX_UPLOADS, FusionBackend
from braid_services.fusion.loaded import MAX_LOADED
from braid_services.fusion.publishing import Announced

from .conftest import trained_stack


@pytest.fixture
def backend(plan, weights_dir) -> FusionBackend:
    backend = FusionBackend(weights_dir, "first")
    backend.prepare(plan)
    return backend


@pytest.fixture
def weights(plan) -> PackedWeights:
    return pack_stack(trained_stack(plan, 7))


def announced(weights: PackedWeights, **changes) -> Announced:
    sha256 = hashlib.sha256(weights.data).hexdigest()
    return dataclasses.replace(
        Announced("third", weights.card_json, len(weights.data), sha256, True), **changes
    )


def test_the_size_is_refused_before_any_byte_has_come_with_both_figures(backend, weights) -> None:
    limit = backend.status().max_publish_bytes
    assert len(weights.data) < limit
    with (
        pytest.raises(InvalidRequestError, match=f"got {limit + 1} bytes, expected at most {limit}"),
        backend.receive(announced(weights, num_bytes=limit + 1)),
    ):
        pass


def test_the_limit_can_be_set(plan, weights) -> None:
    size = len(weights.data)
    for limit, expected in ((size, None), (size - 1, InvalidRequestError), (0, ConflictError)):
        backend = FusionBackend(max_publish_bytes=limit)
        backend.prepare(plan)
        assert backend.status().max_publish_bytes == limit
        if expected is None:
            backend.publish(weights.card_json, weights.data)
        else:
            with pytest.raises(expected, match=r"fusion\.max_publish_bytes"):
                backend.publish(weights.card_json, weights.data)


def test_a_conflict_is_told_before_any_byte_has_come(backend, weights) -> None:
    with (
        pytest.raises(ConflictError, match="'second'"),
        backend.receive(announced(weights, version="second")),
    ):
        pass


def test_only_so_many_come_in_at_a_time(backend, weights) -> None:
    held = [backend.receive(announced(weights)) for _ in range(MAX_UPLOADS)]
    for one in held:
        one.__enter__()
    with pytest.raises(CapacityError, match=f"{MAX_UPLOADS} versions"):
        backend.publish(weights.card_json, weights.data)
    held[0].__exit__(None, None, None)
    backend.publish(weights.card_json, weights.data)
    for one in held[1:]:
        one.__exit__(None, None, None)


def test_weights_for_a_plan_that_is_no_longer_served_are_refused(plan, weights) -> None:
    backend = FusionBackend()
    backend.prepare(plan)
    with backend.receive(announced(weights)) as upload:
        upload.add(weights.data)
        backend.prepare(dataclasses.replace(plan, points=plan.points[:1]))
        with pytest.raises(ConflictError, match="another plan"):
            upload.finish()
    assert backend.active_version == "untrained"


def test_of_two_that_come_in_at_once_the_second_finds_the_first(plan, weights, monkeypatch) -> None:
    backend = FusionBackend()
    backend.prepare(plan)
    inside, go = threading.Semaphore(0), threading.Event()
    unpack = versions.unpack_into

    def slow(*args) -> None:
        inside.release()
        go.wait(20)
        unpack(*args)

    monkeypatch.setattr(versions, "unpack_into", slow)
    other = pack_stack(trained_stack(plan, 8))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(backend.publish, weights.card_json, weights.data, "third")
        assert inside.acquire(timeout=20)
        second = threads.submit(backend.publish, other.card_json, other.data, "third")
        assert not inside.acquire(timeout=0.3)
        go.set()
    assert first.result().active_version == "third"
    assert isinstance(second.exception(), ConflictError)
    held = backend.versions.stack("third").state_dict()
    assert all(torch.equal(held[name], value) for name, value in trained_stack(plan, 7).state_dict().items())


def test_another_service_with_the_same_folder_may_be_faster(plan, weights_dir, weights, monkeypatch) -> None:
    """Between the look and the rename."""
    one, other = FusionBackend(weights_dir), FusionBackend(weights_dir)
    for backend in (one, other):
        backend.prepare(plan)
    write = versions.write_version
    for name, theirs in (("same", weights), ("different", pack_stack(trained_stack(plan, 8)))):
        with monkeypatch.context() as slow:

            def write_late(path, packed, name=name, theirs=theirs, slow=slow) -> None:
                slow.setattr(versions, "write_version", write)
                other.publish(theirs.card_json, theirs.data, name)
                write(path, packed)

            slow.setattr(versions, "write_version", write_late)
            if name == "same":
                assert one.publish(weights.card_json, weights.data, name).active_version == "same"
            else:
                with pytest.raises(ConflictError, match="'different'"):
                    one.publish(weights.card_json, weights.data, name)
        assert read_packed(weights_dir / name) == theirs
    assert (one.active_version, other.active_version) == ("same", "different")


@pytest.mark.parametrize(
    "what", ["a file", "an empty folder", "a folder of others", "half a version", "a link"]
)
def test_a_name_that_something_else_has_is_refused(backend, weights_dir, weights, what) -> None:
    path = weights_dir / "third"
    if what == "a file":
        path.write_text("mine")
    elif what == "a link":
        path.symlink_to(weights_dir / "nowhere")
    else:
        path.mkdir()
        if what == "a folder of others":
            (path / "notes.txt").write_text("mine")
        elif what == "half a version":
            (path / "card.json").write_text(weights.card_json[:100])
    with pytest.raises(ConflictError, match="'third'"):
        backend.publish(weights.card_json, weights.data, "third")
    assert backend.active_version == "first"


def test_a_version_whose_folder_is_gone_may_come_again_and_no_other(
    backend, plan, weights_dir, weights
) -> None:
    backend.publish(weights.card_json, weights.data, "third")
    shutil.rmtree(weights_dir / "third")
    other = pack_stack(trained_stack(plan, 8))
    with pytest.raises(ConflictError, match="'third'"):
        backend.publish(other.card_json, other.data, "third")
    backend.publish(weights.card_json, weights.data, "third")
    assert read_packed(weights_dir / "third") == weights


def test_a_folder_that_cannot_be_written_is_told(backend, weights_dir, weights) -> None:
    weights_dir.rename(weights_dir.with_name("elsewhere"))
    weights_dir.touch()  # in its way, for root as for everybody
    with pytest.raises(StorageError, match="'third' cannot be written"):
        backend.publish(weights.card_json, weights.data, "third")


def test_memory_holds_the_versions_used_last_and_disk_the_others(backend, plan) -> None:
    stream = backend.stream()
    stream.open(["old"])
    for number in range(2 * MAX_LOADED):
        weights = pack_stack(trained_stack(plan, number))
        backend.publish(weights.card_json, weights.data, f"n{number:02}")
    loaded = backend.status().loaded_versions
    assert len(loaded) == MAX_LOADED
    assert {"first", "n15", "n14"} <= {*loaded}  # what it began with is always there
    assert "n00" not in loaded
    assert stream.open(["again"], "n00") == "n00"
    assert stream.open(["first"], "first") == "first"
    assert stream._sessions["old"].stack is stream._sessions["first"].stack
    assert "n00" in backend.status().loaded_versions


def test_versions_in_memory_only_make_room_for_newer_ones(plan, caplog) -> None:
    stack = FusionStack(plan)
    backend = FusionBackend.from_stack(stack)
    for number in range(MAX_LOADED + 1):
        weights = pack_stack(trained_stack(plan, number))
        backend.publish(weights.card_json, weights.data, f"n{number:02}", activate=number < 2)
    assert backend.active_version == "n01"
    assert {"in-process", "n01", f"n{MAX_LOADED:02}"} <= {*backend.status().loaded_versions}
    assert "version n00 was in memory only" in caplog.text
    with pytest.raises(UnknownVersionError, match="'n00'"):
        backend.activate("n00")
    backend.activate("in-process")
    assert backend.versions.stack("in-process") is stack
