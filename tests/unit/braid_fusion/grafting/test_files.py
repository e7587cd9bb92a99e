"""Grafted layers on disk: back as they were, or a refusal that says why and changes nothing."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB, make_model
from grafts import graft
from torch import Tensor

from braid_fusion import FusionConfig, GraftCacheError, GraftConfigError, ResonanceWrapper
from braid_fusion.errors import CorruptWeights, UnknownWeights, WeightMismatch

KINDS = ("weights.safetensors", "weights.pt")
IDS = torch.randint(3, VOCAB, (1, 8), generator=torch.Generator().manual_seed(0))


def trained(family: str = "llama", **config: Any) -> ResonanceWrapper:
    return graft(make_model(family), looking_back=False, **config)


def untrained(family: str = "llama", **config: Any) -> ResonanceWrapper:
    return ResonanceWrapper(make_model(family), FusionConfig.full(fusion_alpha=0.5, **config))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def state(wrapper: ResonanceWrapper) -> dict[str, Tensor]:
    return copy.deepcopy(wrapper.state_dict())


def assert_untouched(wrapper: ResonanceWrapper, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrapper.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
def test_weights_come_back_into_another_wrapper(tmp_path: Path, name: str) -> None:
    source, target = trained(), untrained(seed=4)
    source.save_fusion_weights(tmp_path / "deep" / name)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]
    size = (tmp_path / "deep" / name).stat().st_size
    assert size < 4 * source.num_fusion_parameters() + 60_000  # nothing of the base model
    with torch.no_grad():
        cache = target(input_ids=IDS).past_key_values
    target.load_fusion_weights(str(tmp_path / "deep" / name))
    assert torch.equal(logits(target), logits(source))
    with pytest.raises(GraftCacheError, match="another wrapper"), torch.no_grad():
        target(input_ids=IDS[:, :1], past_key_values=cache)
    source.save_fusion_weights(tmp_path / "deep" / name)  # over what is there


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_another_model_or_configuration_are_refused(tmp_path: Path, name: str) -> None:
    trained().save_fusion_weights(tmp_path / name)
    others = {
        untrained("gpt2"): r"base\.family: the weights have 'llama', this model has 'gpt2'",
        untrained(
            fusion_mode="parallel"
        ): "config.fusion_mode: the weights have 'residual', this model has 'parallel'",
        untrained(
            fusion_positions=(1,)
        ): r"config\.fusion_positions: the weights have \[0, 1, 2\], this model has \[1\]",
        ResonanceWrapper(
            make_model("llama", vocab_size=70), FusionConfig.full(fusion_alpha=0.5)
        ): "base.vocab_size: the weights have 67, this model has 70",
    }
    for wrapper, why in others.items():
        before = state(wrapper)
        with pytest.raises(WeightMismatch, match=why):
            wrapper.load_fusion_weights(tmp_path / name)
        assert_untouched(wrapper, before)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_refused_and_nothing_is_half_applied(tmp_path: Path, name: str) -> None:
    path, wrapper = tmp_path / name, untrained()
    trained().save_fusion_weights(path)
    whole, before = path.read_bytes(), state(wrapper)
    for damaged in (b"", b"nonsense", whole[:100], whole[: len(whole) // 2], whole[:-7], pickle.dumps(print)):
        path.write_bytes(damaged)
        with pytest.raises(CorruptWeights, match=name):
            wrapper.load_fusion_weights(path)
        assert_untouched(wrapper, before)
    with pytest.raises(UnknownWeights, match="nowhere"):
        wrapper.load_fusion_weights(tmp_path / f"nowhere-{name}")
    with pytest.raises(GraftConfigError, match=r"'\.bin', expected \.safetensors or \.pt"):
        wrapper.load_fusion_weights(tmp_path / "weights.bin")


def test_files_that_are_well_formed_but_wrong(tmp_path: Path) -> None:
    path, wrapper = tmp_path / "weights.pt", untrained()
    trained().save_fusion_weights(path)
    before, good = state(wrapper), torch.load(path, weights_only=True)
    name = next(iter(good["tensors"]))

    def changed(**tensors: Any) -> dict[str, Any]:
        return {**good, "tensors": {**good["tensors"], **tensors}}

    for content, why in (
        ({**good, "format": 9}, "got format 9, expected 1"),
        ({**good, "tensors": {"x": torch.zeros(1)}}, r"missing tensors \['0\..*unexpected tensors \['x'\]"),
        (changed(**{name: torch.zeros(3, 3, 3)}), r"got torch.float32 \(3, 3, 3\), expected torch.float32"),
        (changed(**{name: good["tensors"][name].long()}), "got torch.int64"),
        (changed(**{name: good["tensors"][name] * torch.nan}), f"{name}: got NaN or infinity"),
        (changed(**{name: "text"}), "got a str, expected a tensor"),
        ({**good, "config": {"mode": torch.zeros(1)}}, "not a file of grafted layers"),
        ({"config": 1}, "not a file of grafted layers"),
    ):
        torch.save(content, path)
        with pytest.raises(CorruptWeights, match=why):
            wrapper.load_fusion_weights(path)
        assert_untouched(wrapper, before)


def test_a_folder_with_the_base_model_stands_alone(tmp_path: Path) -> None:
    wrapper = trained()
    wrapper.save_pretrained(tmp_path / "all", save_base=True)
    again = ResonanceWrapper.from_pretrained(tmp_path / "all")
    assert torch.equal(logits(again), logits(wrapper))
    assert again.fusion_config == wrapper.fusion_config
    half = ResonanceWrapper.from_pretrained(tmp_path / "all", dtype=torch.bfloat16)
    assert half.base_model.dtype == torch.bfloat16


def test_a_folder_without_it_names_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    make_model("llama").save_pretrained(tmp_path / "model")
    wrapper = graft(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), looking_back=False)
    wrapper.save_pretrained(tmp_path / "grafts")
    assert {path.name for path in (tmp_path / "grafts").iterdir()} == {
        "fusion.json",
        "fusion_weights.safetensors",
    }
    assert torch.equal(logits(ResonanceWrapper.from_pretrained(tmp_path / "grafts")), logits(wrapper))
    model = make_model("llama")
    given = ResonanceWrapper.from_pretrained(tmp_path / "grafts", model, freeze_base=False)
    assert given.base_model is model
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits(given), logits(wrapper))
    given.unwrap()
    other = make_model("llama", vocab_size=70)
    with pytest.raises(WeightMismatch, match="vocab_size"):
        ResonanceWrapper.from_pretrained(tmp_path / "grafts", other)
    assert not any(module._forward_hooks for module in other.modules())


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownWeights, match=r"no fusion\.json"):
        ResonanceWrapper.from_pretrained(tmp_path)
    trained().save_pretrained(tmp_path)
    with pytest.raises(GraftConfigError, match="says no base model, expected one as base_model="):
        ResonanceWrapper.from_pretrained(tmp_path)
    card = json.loads((tmp_path / "fusion.json").read_text())
    for content, why in (
        ("{", "not a card"),
        ("[]", "not a card"),
        (json.dumps({**card, "format": 2}), "got format 2"),
        (json.dumps({**card, "config": {"colour": 3}}), "colour"),
    ):
        (tmp_path / "fusion.json").write_text(content)
        with pytest.raises(CorruptWeights, match=why):
            ResonanceWrapper.from_pretrained(tmp_path, make_model("llama"))
