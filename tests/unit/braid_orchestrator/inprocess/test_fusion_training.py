"""Training a notebook's braid is what `braid train` does: the same weights, and models that stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from braids import two_backends

from braid_fusion.errors import TrainingConfigError
from braid_fusion.stack import FusionStack
from braid_orchestrator import BraidedLLM, ModelWrapper, train_fusion_layers
from braid_orchestrator.training.data import DocumentEncoder, find_texts, load_texts
from braid_orchestrator.training.local import LocalTrainingShard
from braid_orchestrator.training.run import RunOptions, train_braid
from braid_rpc.errors import ContextLengthError, InvalidRequestError
from braid_services.shard.backend import ShardBackend

TEXTS = ["the thing in the other inner theatre is thin there " * 4, "and then the theme; ", "im Theater " * 6]


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends()


def braid_of(backends: list[ShardBackend], **options: object) -> BraidedLLM:
    models = [ModelWrapper.from_backend(backend) for backend in backends]
    return BraidedLLM(models, "mlp", [1, 2], **{"readout": "gate", **options})  # type: ignore[arg-type]


def test_it_gives_the_weights_that_training_against_services_gives(backends, tmp_path: Path) -> None:
    braided = braid_of(backends)
    untrained = [parameter.clone() for parameter in braided.parameters()]
    record = train_fusion_layers(braided, TEXTS, num_steps=5, window=16, batch_size=3, seed=2)
    assert not any(torch.equal(*pair) for pair in zip(untrained, braided.parameters(), strict=True))

    for index, text in enumerate(TEXTS):
        (tmp_path / f"{index}.txt").write_text(text)
    shards = [LocalTrainingShard(backend) for backend in backends]
    stack = FusionStack(braided.plan)
    encoder = DocumentEncoder(shards[0].tokenizer_json(), shards[0].card.eos_token_ids)
    outcome = train_braid(
        shards,
        stack,
        load_texts(find_texts([str(tmp_path / f"{index}.txt") for index in range(3)]), encoder, window=16),
        RunOptions(steps=5, window=16, batch_size=3, seed=2),
        tmp_path / "run",
        version="v1",
        progress_bar=False,
    )
    for shard in shards:
        shard.shutdown()
    assert outcome.record.final_loss == record.final_loss
    assert all(torch.equal(*pair) for pair in zip(stack.parameters(), braided.parameters(), strict=True))


def test_no_model_changes(backends) -> None:
    before = [p.clone() for backend in backends for p in backend.model.parameters()]
    train_fusion_layers(braid_of(backends), TEXTS, num_steps=3, window=16)
    after = [p for backend in backends for p in backend.model.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_texts_shorter_than_a_window_are_one(backends) -> None:
    assert train_fusion_layers(braid_of(backends), ["the thing"], num_steps=2, window=100).steps == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "texts: got none"), ([""], "texts: got no text"), ("the thing", "texts: got a single text")],
)
def test_too_little_text_is_told(backends, texts, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        train_fusion_layers(braid_of(backends), texts)


def test_nothing_to_train_and_windows_that_are_too_long_are_told(backends) -> None:
    nothing = braid_of(backends[:1], readout="anchor")
    nothing.stack.requires_grad_(False)
    with pytest.raises(TrainingConfigError, match="no trainable parameter"):
        train_fusion_layers(nothing, TEXTS)
    with pytest.raises(ContextLengthError, match="window: got 300 tokens, expected at most 256"):
        train_fusion_layers(braid_of(backends), [TEXTS[0] * 5], window=300)
