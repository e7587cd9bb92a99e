"""Versions on disk: what comes back, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch

from braid_fusion.errors import CorruptWeights, NotAVersion, UnknownWeights, WeightMismatch
from braid_fusion.stack import FusionStack
from braid_fusion.weights import list_versions, load_stack, load_weights, read_card, save_stack


@pytest.fixture
def saved(make_plan, trained, tmp_path):
    stack = trained(FusionStack(make_plan("attention", readout="gate", num_points=2)))
    folder = tmp_path / "weights" / "v1"
    save_stack(stack, folder, {"steps": 300, "loss": 1.5})
    return stack, folder


def test_saved_weights_come_back_bit_by_bit(saved) -> None:
    stack, folder = saved
    loaded = load_stack(stack.plan, folder).state_dict()
    expected = stack.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "card.json"}


def test_the_card_says_what_the_weights_belong_to(saved) -> None:
    stack, folder = saved
    card = json.loads((folder / "card.json").read_text())
    assert card["plan_hash"] == stack.plan.hash()
    assert card["shard_hashes"] == {"code": "model-0", "prose.v2": "model-1", "maths": "model-2"}
    assert set(card["tokenizer_hashes"].values()) == {"tokenizer"}
    assert card["training"] == {"steps": 300, "loss": 1.5}
    assert card["braid_version"]
    assert read_card(folder).plan == stack.plan


def test_another_seed_may_load_them(saved) -> None:
    stack, folder = saved
    load_stack(dataclasses.replace(stack.plan, seed=5), folder)


def test_other_shards_are_refused_field_by_field_with_both_sides(saved) -> None:
    stack, folder = saved
    plan = stack.plan
    shards = (dataclasses.replace(plan.shards[0], model_hash="changed", width=13), *plan.shards[1:])
    with pytest.raises(WeightMismatch) as refused:
        load_stack(dataclasses.replace(plan, shards=shards), folder)
    message = str(refused.value)
    assert "'v1'" in message
    assert "shards[0].model_hash: the weights have 'model-0', this braid has 'changed'" in message
    assert "shards[0].width: the weights have 12, this braid has 13" in message
    assert "vocab_size" not in message


def test_another_point_is_refused(saved, make_plan) -> None:
    _, folder = saved
    with pytest.raises(
        WeightMismatch, match=r"points\[1\]\.name: the weights have '2', this braid has 'nothing'"
    ):
        load_stack(make_plan("attention", readout="gate"), folder)
    with pytest.raises(WeightMismatch, match=r"strategy: the weights have 'attention', this braid has 'mlp'"):
        load_stack(make_plan("mlp", readout="gate", num_points=2), folder)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_weight_file_is_refused_and_changes_nothing(saved, trained, damage) -> None:
    stack, folder = saved
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    target = FusionStack(stack.plan)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CorruptWeights, match=r"weights\.safetensors"):
        load_weights(target, folder)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}', '{"format": 1, "plan": {"shards": 3}}'])
def test_a_damaged_card_is_refused(saved, text) -> None:
    stack, folder = saved
    (folder / "card.json").write_text(text)
    with pytest.raises(CorruptWeights, match=r"card\.json"):
        load_stack(stack.plan, folder)


def test_tensors_that_the_plan_does_not_have_are_named(saved, make_plan) -> None:
    stack, folder = saved
    stack.points["1"].strategy = torch.nn.Linear(2, 2)
    save_stack(stack, folder)
    with pytest.raises(CorruptWeights, match=r"unexpected tensors \['points\.1\.strategy\.bias'"):
        load_stack(stack.plan, folder)


def test_a_version_that_is_not_there_is_unknown(saved, tmp_path) -> None:
    stack, _ = saved
    with pytest.raises(UnknownWeights, match="'v9'"):
        load_stack(stack.plan, tmp_path / "weights" / "v9")


def test_versions_are_listed_oldest_first_and_overwriting_renews(saved, tmp_path) -> None:
    stack, folder = saved
    save_stack(stack, folder.parent / "a2")
    (folder.parent / "notes").mkdir()
    assert [card.version for card in list_versions(folder.parent)] == ["v1", "a2"]
    save_stack(stack, folder)
    assert [card.version for card in list_versions(folder.parent)] == ["a2", "v1"]
    assert list_versions(tmp_path / "nowhere") == []
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_a_folder_that_is_no_version_is_never_overwritten(saved, tmp_path, monkeypatch) -> None:
    stack, folder = saved
    (folder.parent / "notes.txt").write_text("mine")
    with pytest.raises(NotAVersion, match=r"holds '\w"):
        save_stack(stack, folder.parent)
    with pytest.raises(NotAVersion, match="no folder"):
        save_stack(stack, folder.parent / "notes.txt")
    monkeypatch.chdir(folder)
    for name in (".", "..", ""):
        with pytest.raises(NotAVersion, match="version's name"):
            save_stack(stack, name)
    assert (folder.parent / "notes.txt").read_text() == "mine"
    assert load_stack(stack.plan, folder).plan == stack.plan


def test_a_version_stands_when_another_cannot_take_its_place(saved, monkeypatch) -> None:
    stack, folder = saved
    created = read_card(folder).created_unix_s
    replace = os.replace

    def fail(source, target) -> None:
        if target == folder and not str(source).endswith(".old"):
            raise OSError("disk")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        save_stack(stack, folder)
    assert read_card(folder).created_unix_s == created
    assert list(folder.parent.iterdir()) == [folder]


def test_a_card_that_cannot_be_read_does_not_hide_the_others(saved, caplog) -> None:
    stack, folder = saved
    save_stack(stack, folder.parent / "bad")
    (folder.parent / "bad" / "card.json").write_text("{")
    assert [card.version for card in list_versions(folder.parent)] == ["v1"]
    assert "bad" in caplog.text
