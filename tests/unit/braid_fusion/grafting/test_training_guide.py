"""The grafting document's steps from texts to a file of weights, with texts and a model of our own."""

from __future__ import annotations

from pathlib import Path

import torch
from models import byte_tokenizer, tiny_llama

from braid_fusion import FusionConfig, FusionTrainer, ResonanceWrapper, TrainingConfig, create_fusion_dataset

TEXTS = [
    "A braid of rivers runs through the gravel.",
    "Three strands are stronger than one, said the rope.",
    "The weaver counts: over, under, over.",
]


def test_training_grafted_layers_as_the_document_describes_it(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = ResonanceWrapper(tiny_llama(4), FusionConfig.standard(), freeze_base=True)
    prompt = tokenizer("Three strands", return_tensors="pt")
    with torch.no_grad():
        untrained = model(**prompt).logits

    dataset = create_fusion_dataset(TEXTS, tokenizer, max_length=512)
    config = TrainingConfig(
        learning_rate=1e-3, max_steps=30, coherence_loss_weight=0.1, kuramoto_loss_weight=0.05
    )
    trainer = FusionTrainer(model=model, train_dataset=dataset, tokenizer=tokenizer, config=config)
    results = trainer.train()

    assert results.steps == 30
    assert results.final_loss < results.history[0]["loss"]
    metrics = model.get_average_metrics()
    assert 0 < metrics["gate_coherence"] < 1 and 0 < metrics["kuramoto_order"] <= 1
    model.save_fusion_weights(tmp_path / "fusion_weights.pt")
    base_bytes = sum(p.numel() * p.element_size() for p in model.base_model.parameters())
    assert (tmp_path / "fusion_weights.pt").stat().st_size < base_bytes

    fresh = ResonanceWrapper(tiny_llama(4), FusionConfig.standard())
    fresh.load_fusion_weights(tmp_path / "fusion_weights.pt")
    with torch.no_grad():
        trained, again = model(**prompt).logits, fresh(**prompt).logits
    assert torch.equal(trained, again)
    assert not torch.allclose(trained, untrained, atol=1e-3)
