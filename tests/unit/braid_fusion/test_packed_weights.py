"""Versions as bytes, and how they come to be folders."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import save

from braid_fusion.errors import CorruptWeights, WeightMismatch
from braid_fusion.packed_weights import (
    PackedWeights,
    check_plan,
    max_packed_bytes,
    pack_stack,
    parse_card,
    unpack_into,
    version_name,
)
from braid_fusion.stack import FusionStack
from braid_fusion.weights import load_stack, read_packed, save_stack, write_version


@pytest.fixture
def stack(make_plan, trained) -> FusionStack:
    return trained(FusionStack(make_plan("attention", readout="gate", num_points=2)))


@pytest.fixture
def weights(stack) -> PackedWeights:
    return pack_stack(stack, {"steps": 3})


def card_of(weights: PackedWeights):
    return parse_card("v1", weights.card_json, "card")


def test_what_is_packed_is_what_is_saved(stack, weights, tmp_path) -> None:
    save_stack(stack, tmp_path / "saved", {"steps": 3})
    saved = read_packed(tmp_path / "saved")
    assert saved.data == weights.data
    kept = [json.loads(text) for text in (saved.card_json, weights.card_json)]
    assert kept[0] | {"created_unix_s": 0} == kept[1] | {"created_unix_s": 0}
    write_version(tmp_path / "written", weights)
    assert read_packed(tmp_path / "written") == weights
    loaded = load_stack(stack.plan, tmp_path / "written").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in stack.state_dict().items())
    assert (tmp_path / "written").stat().st_mode & 0o777 == 0o755


def test_unpacking_checks_before_it_changes_anything(stack, weights) -> None:
    target = FusionStack(stack.plan)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    for data in (b"", weights.data[:-1], weights.data + b"x"):
        with pytest.raises(CorruptWeights, match="weights: got SHA-256"):
            unpack_into(target, card_of(weights), data, "weights")
    other = dataclasses.replace(stack.plan, anchor=1)
    with pytest.raises(WeightMismatch, match="anchor: the weights have 0, this braid has 1"):
        check_plan(card_of(weights), other)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    unpack_into(target, card_of(weights), weights.data, "weights")
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in stack.state_dict().items())


def test_a_name_is_made_of_when_and_what(stack, weights) -> None:
    def named(**changes: object) -> str:
        return version_name(json.dumps(json.loads(weights.card_json) | changes))

    one = named(created_unix_s=0.9)
    assert one == named(created_unix_s=0.9)
    assert one.startswith("19700101-000000-")
    assert one != named(created_unix_s=0.9, training={})
    assert one < named(created_unix_s=1.0) < named(created_unix_s=253402300799) < "99991231-235960"
    with pytest.raises(CorruptWeights, match="card: not a weight card"):
        version_name("{}")


@pytest.mark.parametrize("created", [-1, 253402300800, 1e400, float("nan"), "soon", None, [], 10**400])
def test_a_version_from_nowhen_is_refused(weights, created) -> None:
    text = json.dumps(json.loads(weights.card_json) | {"created_unix_s": created})
    with pytest.raises(CorruptWeights, match="card"):
        parse_card("v1", text, "card")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_file_of_these_modules_is_within_the_limit(stack, dtype) -> None:
    data = save({name: value.to(dtype) for name, value in stack.state_dict().items()})
    assert len(data) <= max_packed_bytes(stack)
    assert max_packed_bytes(stack) < 3 * len(pack_stack(stack).data) + 64 * 2**10


@pytest.mark.parametrize("there", ["a version", "a file", "a folder", "a link"])
def test_what_is_there_is_not_overwritten_unless_it_is_to_be(stack, weights, tmp_path, there) -> None:
    folder = tmp_path / "weights" / "v1"
    folder.parent.mkdir()
    if there == "a version":
        save_stack(stack, folder)
    elif there == "a file":
        folder.write_text("mine")
    elif there == "a link":
        folder.symlink_to(tmp_path)
    else:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(FileExistsError):
        write_version(folder, weights)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("failing", ["fsync", "replace", "rename"])
def test_a_disk_that_fails_leaves_nothing(weights, tmp_path, monkeypatch, failing) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            write_version(tmp_path / "weights" / "v1", weights)
    assert os.listdir(tmp_path / "weights") == []
    write_version(tmp_path / "weights" / "v1", weights)
    assert read_packed(tmp_path / "weights" / "v1") == weights
