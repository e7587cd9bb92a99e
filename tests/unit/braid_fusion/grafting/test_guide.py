"""The grafting document's own examples, on a local model and other texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from grafts import randomise
from models import save_tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from braid_fusion import FusionConfig, ResonanceFusionLayer, ResonanceWrapper

MEASURES = {"prime_entropy", "prime_coherence", "kuramoto_order", "gate_coherence", "gate"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), 0, num_layers=12)


def test_basic_usage(folder: Path) -> None:
    base_model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = FusionConfig.for_gpt2()
    model = ResonanceWrapper(base_model, config, freeze_base=True)
    assert list(model.fusion_layers) == ["3", "6", "9", "11"]

    inputs = tokenizer("What the river said", return_tensors="pt")
    outputs = model.generate(**inputs, max_length=40, pad_token_id=tokenizer.eos_token_id)
    assert tokenizer.decode(outputs[0]).startswith("What the river said")

    metrics = model.get_average_metrics()
    assert 0 <= metrics["gate_coherence"] <= 1
    assert 0 <= metrics["kuramoto_order"] <= 1
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == model.num_fusion_parameters() > 0


def test_accessing_layer_metrics(folder: Path) -> None:
    model = ResonanceWrapper(
        AutoModelForCausalLM.from_pretrained(folder), FusionConfig.for_llama(num_layers=12)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.get_metrics() == {}
    assert model.get_average_metrics() == {}
    with torch.no_grad():
        model(**tokenizer("Seven herons, one heron", return_tensors="pt"))
    by_layer = model.get_metrics()
    assert list(by_layer) == [3, 6, 9, 11]
    for metrics in by_layer.values():
        assert set(metrics) == MEASURES
        assert all(isinstance(value, float) for value in metrics.values())
    average = model.get_average_metrics()
    expected = sum(metrics["gate"] for metrics in by_layer.values()) / 4
    assert average["gate"] == pytest.approx(expected)


def test_standalone_fusion_layer() -> None:
    config = FusionConfig.standard()
    fusion = ResonanceFusionLayer(hidden_dim=96, config=config)
    hidden_states = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(1))
    output, metrics = fusion(hidden_states, return_metrics=True)
    assert torch.equal(output, hidden_states)
    assert set(metrics) == MEASURES
    assert isinstance(fusion, nn.Module)


def test_weights_alone_make_a_small_file(folder: Path, tmp_path: Path) -> None:
    model = ResonanceWrapper(AutoModelForCausalLM.from_pretrained(folder), FusionConfig.minimal())
    model.save_fusion_weights(tmp_path / "fusion_weights.pt")
    model.load_fusion_weights(tmp_path / "fusion_weights.pt")
    assert (tmp_path / "fusion_weights.pt").stat().st_size < (folder / "model.safetensors").stat().st_size


def test_transformers_own_pipeline(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ResonanceWrapper(AutoModelForCausalLM.from_pretrained(folder), FusionConfig.standard())
    randomise(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    texts = ["Rain over", "A door that nobody had opened"]
    together = generator(texts, batch_size=2, **options)
    for text, found in zip(texts, together, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs.input_ids.shape[1] :]
        assert found[0]["generated_text"] == tokenizer.decode(tokens, skip_special_tokens=True)
    assert "not supported" not in caplog.text
    generator.save_pretrained(tmp_path)
    again = ResonanceWrapper.from_pretrained(tmp_path)
    assert torch.equal(again.fusion_layers["3"].out.weight, model.fusion_layers["3"].out.weight)
    bare = pipeline("text-generation", model=model.unwrap(), tokenizer=tokenizer)
    assert bare(texts, **options) != together
