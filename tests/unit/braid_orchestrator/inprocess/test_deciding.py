"""`BraidedLLM` decides per call who answers: by a function, by name, or as it has learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import tiny_backend

from braid_fusion import DecisionClassifier, register_predicate, save_classifier
from braid_orchestrator import BraidedLLM, ModelWrapper, measure_answerers, train_decider
from braid_rpc.errors import ConfigError, InvalidRequestError, NoDeciderError

QUERIES = {"a hard one, with several parts": True, "x = 1": "right", "easy": False}


def by_looks(text: str) -> bool | str:
    return "right" if "=" in text else "," in text


@pytest.fixture(scope="module")
def wrappers() -> list[ModelWrapper]:
    return [
        ModelWrapper.from_backend(tiny_backend("left", 1, width=32, num_layers=3)),
        ModelWrapper.from_backend(tiny_backend("right", 2, width=48, num_layers=4)),
    ]


def make(wrappers: list[ModelWrapper], **options: object) -> BraidedLLM:
    braided = BraidedLLM(wrappers, "mlp", [1, 2], readout="gate", **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in braided.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return braided


def test_auto_is_what_was_decided(wrappers: list[ModelWrapper]) -> None:
    with make(wrappers, decide=by_looks) as braided:
        for query, answerer in QUERIES.items():
            found = braided.complete(query, 6, use_braiding="auto")
            shard = answerer if isinstance(answerer, str) else None
            expected = braided.complete(query, 6, use_braiding=answerer is True, shard=shard)
            assert (found.text, found.braided) == (expected.text, answerer is True)
            assert found.answered_by == expected.answered_by == (shard or ("braided" if answerer else "left"))
        assert braided.generate("x = 1", 6, use_braiding="auto") == wrappers[1].generate("x = 1", 6)
        assert braided.complete("easy", 6).braided  # who says nothing gets the braid
        assert braided.score("easy").num_bytes > 0


def test_the_default_can_be_changed_and_what_decides_be_exchanged(wrappers: list[ModelWrapper]) -> None:
    register_predicate("test: always right")(lambda text: "right")
    with make(wrappers, decide="test: always right", use_braiding="auto") as braided:
        assert braided.complete("easy", 2).answered_by == "right"
        braided.decide = by_looks
        assert braided.complete("easy", 2).answered_by == "left"
        braided.decide = None
        with pytest.raises(NoDeciderError, match="nothing is configured to decide"):
            braided.generate("easy", 2)
    with pytest.raises(ConfigError, match=r"braiding\.decide: predicate: got 'never'"):
        make(wrappers, decide="never")


def test_a_shard_is_named_only_where_it_answers_alone(wrappers: list[ModelWrapper]) -> None:
    with make(wrappers, decide=by_looks) as braided:
        assert braided.generate("easy", 4, False, shard="right") == wrappers[1].generate("easy", 4)
        for said in (True, "auto", None):
            with pytest.raises(InvalidRequestError, match="shard: got 'right', expected use_braiding false"):
                braided.generate("easy", 4, said, shard="right")
        with pytest.raises(InvalidRequestError, match="use_braiding: got 'maybe'"):
            braided.generate("easy", 4, "maybe")  # type: ignore[arg-type]


def test_what_was_measured_is_learned(wrappers: list[ModelWrapper], tmp_path: Path) -> None:
    texts = ["the thing in there", "1234567890", "if x: return y", "import os, sys"]
    with make(wrappers) as braided:
        figures = measure_answerers(braided, texts)
        assert list(figures) == [True, "left", "right"]
        best = [min(figures, key=lambda one, i=i: figures[one][i]) for i in range(len(texts))]
        braided.decide = train_decider(braided, texts, margin=0.0)
        decided = [braided.complete(text, 1, "auto") for text in texts]
        assert [one.braided or one.answered_by for one in decided] == best  # on what it was trained on
        # The braid never gains so much: what is left are the shards.
        dear = train_decider(braided, texts, margin=100.0)
        assert True not in dear.answerers
        with pytest.raises(InvalidRequestError, match="of one token"):
            train_decider(braided, ["a"])
        save_classifier(braided.decide, tmp_path / "decider")
    others = [wrappers[0], ModelWrapper.from_backend(tiny_backend("right", 3, width=48, num_layers=4))]
    hashes = [models[1].backend.card.model_hash for models in (wrappers, others)]
    told = (
        rf"trained for other models: right: the classifier has '{hashes[0]}', this braid has '{hashes[1]}'$"
    )
    with pytest.raises(ConfigError, match=told):
        make(others, decide=f"{tmp_path}/decider")
    with make(wrappers, decide=f"{tmp_path}/decider") as again:
        assert [again.complete(text, 1, "auto").answered_by for text in texts] == [
            one.answered_by for one in decided
        ]


def test_a_classifier_of_other_models_is_refused(wrappers: list[ModelWrapper], tmp_path: Path) -> None:
    foreign = DecisionClassifier(["middle", True], 16)
    with make(wrappers, decide=foreign) as braided, pytest.raises(ConfigError, match="decides for 'middle'"):
        braided.generate("x", 2, "auto")
    save_classifier(foreign, tmp_path / "decider")
    with pytest.raises(ConfigError, match="decides for 'middle', expected shards among: left, right"):
        make(wrappers, decide=str(tmp_path / "decider"))
