"""The learned decision: what it learns, that it says the same everywhere, and what it refuses."""

from __future__ import annotations

import argparse
import ast
import json
import re
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from braid_fusion.deciding import (
    DecisionClassifier,
    cheapest_answers,
    find_predicate,
    load_classifier,
    register_predicate,
    save_classifier,
    train_classifier,
)
from braid_fusion.deciding.features import text_features
from braid_fusion.errors import CorruptWeights, DeciderError, NotAVersion, UnknownWeights

MODULES = (argparse, ast, json, re, textwrap, torch.optim.lr_scheduler)


def code_and_prose() -> tuple[list[str], list[str]]:
    """Pieces of source without its docstrings, and docstrings."""
    code, prose = [], []
    for module in MODULES:
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    prose += [part for part in docstring.split("\n\n") if len(part) > 40]
                    node.body = node.body[1:] or [ast.Pass()]
                if isinstance(node, ast.FunctionDef):
                    code.append(ast.unparse(node)[:200])
    return sorted(set(code)), sorted(set(prose))


def test_held_out_texts_of_two_kinds_are_told_apart() -> None:
    code, prose = code_and_prose()
    count = min(len(code), len(prose))
    assert count > 60
    texts = [text for pair in zip(code[:count], prose[:count], strict=True) for text in pair]
    answers = ["code", "prose"] * count
    split = int(0.6 * count) * 2
    classifier = train_classifier(texts[:split], answers[:split])
    decided = [classifier.decide(text) for text in texts[split:]]
    accuracy = sum(map(str.__eq__, decided, answers[split:])) / len(decided)
    assert accuracy > 0.9  # chance is 0.5

    # Labels that say nothing about the texts are not learned: what is above is no leak.
    generator = torch.Generator().manual_seed(0)
    drawn = [("code", "prose")[i] for i in torch.randint(2, (len(texts),), generator=generator)]
    blind = train_classifier(texts[:split], drawn[:split])
    guessed = [blind.decide(text) for text in texts[split:]]
    assert 0.3 < sum(map(str.__eq__, guessed, drawn[split:])) / len(guessed) < 0.7


def test_training_depends_on_the_data_alone() -> None:
    texts, answers = ["def f(): pass", "a plain sentence"] * 2, ["left", True] * 2
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = train_classifier(texts, answers)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second = train_classifier(texts, answers)
    assert torch.equal(first.scores.weight, second.scores.weight)
    assert first.answerers == (True, "left")


def test_the_braid_has_to_be_worth_it_by_the_margin() -> None:
    classifier = DecisionClassifier([True, "left", "right"], 64)
    with torch.no_grad():
        classifier.scores.bias.copy_(torch.tensor([0.5, 0.1, 0.2]).log())
    probabilities = classifier.probabilities(["any"])[0]
    torch.testing.assert_close(probabilities, torch.tensor([0.625, 0.125, 0.25]))
    assert classifier.decide("any") is True
    classifier.margin = 0.37
    assert classifier.decide("any") is True
    classifier.margin = 0.38
    assert classifier.decide("any") == "right"


@given(text=st.text(max_size=80))
def test_any_text_has_features_of_unit_length(text: str) -> None:
    features = text_features(text, 257)
    assert features.shape == (257,) and bool((features >= 0).all())
    assert float(features.norm()) == pytest.approx(1.0 if text else 0.0, abs=1e-5)


def test_features_are_the_same_on_every_machine() -> None:
    """Saved weights mean nothing under another hash: these numbers must never change."""
    found = text_features("def add(a, b):", 16)
    expected = torch.tensor(FEATURES)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0.0)


FEATURES = [
    *(0.2524, 0.2810, 0.3446, 0.2524, 0.3052, 0.2174, 0.2810, 0.3446),
    *(0.2524, 0.1723, 0.2174, 0.1087, 0.1723, 0.2524, 0.2810, 0.1087),
]


def test_the_best_shard_answers_unless_the_braid_gains_the_margin() -> None:
    figures = {True: [1.0, 1.0, 1.0], "left": [1.5, 1.05, 0.9], "right": [2.0, 1.01, 2.0]}
    assert cheapest_answers(figures, 0.1) == [True, "right", "left"]
    assert cheapest_answers(figures) == [True, True, "left"]
    assert cheapest_answers({True: [1.0], False: [1.2]}, 0.3) == [False]


def test_saved_classifiers_come_back(tmp_path: Path) -> None:
    texts = ["def f(): pass", "a plain sentence", "import os"]
    classifier = train_classifier(
        texts, ["left", True, False], num_features=128, margin=0.2, model_hashes={"left": "ab"}
    )
    save_classifier(classifier, tmp_path / "decider", {"texts": 3})
    save_classifier(classifier, tmp_path / "decider", {"texts": 3})  # in the place of the first
    loaded = load_classifier(tmp_path / "decider")
    assert (loaded.answerers, loaded.num_features, loaded.margin) == ((False, True, "left"), 128, 0.2)
    assert loaded.model_hashes == {"left": "ab"}
    assert torch.equal(loaded.probabilities(texts), classifier.probabilities(texts))
    assert json.loads((tmp_path / "decider" / "card.json").read_text())["training"] == {"texts": 3}


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownWeights, match="nowhere"):
        load_classifier(tmp_path / "nowhere")
    folder = tmp_path / "decider"
    save_classifier(DecisionClassifier(["left", True], 8), folder)
    weights, card = folder / "weights.safetensors", folder / "card.json"
    good = weights.read_bytes()
    weights.write_bytes(good[:-4] + b"0000")
    with pytest.raises(CorruptWeights, match="SHA-256"):
        load_classifier(folder)
    weights.write_bytes(good)
    told = json.loads(card.read_text())
    for change, says in (
        ({"answerers": ["left"]}, "not what its card says"),
        ({"answerers": [1, 2]}, "not what its card says"),
        ({"num_features": 2**40}, "num_features"),
        ({"num_features": "8"}, "num_features"),
        ({"shard_hashes": None}, "shard_hashes"),
        ({"kind": "weights"}, "decision classifier"),
    ):
        card.write_text(json.dumps(told | change))
        with pytest.raises(CorruptWeights, match=says):
            load_classifier(folder)
    card.write_text("{")
    with pytest.raises(CorruptWeights, match="cannot be read"):
        load_classifier(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(NotAVersion, match="full"):
        save_classifier(DecisionClassifier(["left", True], 8), tmp_path / "full")


def test_what_cannot_be_learned_is_named() -> None:
    for answerers in ([], [True, True], ["a", "a"]):
        with pytest.raises(DeciderError, match="expected different ones"):
            DecisionClassifier(answerers)
    with pytest.raises(DeciderError, match="got 2 texts and 1 answers"):
        train_classifier(["a", "b"], [True])
    with pytest.raises(DeciderError, match="margin: got 2"):
        DecisionClassifier([True], margin=2.0)
    with pytest.raises(DeciderError, match="expected True's and a shard's"):
        cheapest_answers({"left": [1.0]})
    with pytest.raises(DeciderError, match=r"got \[1, 2\] figures"):
        cheapest_answers({True: [1.0], "left": [1.0, 2.0]})


def test_predicates_are_found_by_name() -> None:
    @register_predicate("test: is long")
    def is_long(text: str) -> bool:
        return len(text) > 10

    assert find_predicate("test: is long") is is_long
    with pytest.raises(DeciderError, match=r"got 'is wise', expected one of: .*test: is long"):
        find_predicate("is wise")
    with pytest.raises(DeciderError, match="without a slash"):
        register_predicate("a/b")(is_long)
