"""`braid train-decider` makes the folder that `braiding.decide` names, and says what it is worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import save_tiny_model
from typer.testing import CliRunner

from braid_fusion.deciding import load_classifier
from braid_orchestrator.cli.main import app

KINDS = {"code": "def f(x): return x", "prose": "once upon a time there was"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # What it is to decide by does not exist yet.
    lines = [
        "anchor: code",
        f"braiding: {{default: auto, decide: {tmp_path}/decider}}",
        "readout: mixture",
        "shards:",
    ]
    for seed, name in enumerate(KINDS):
        save_tiny_model(tmp_path / name, seed)
        lines.append(f"  - {{name: {name}, model: {tmp_path / name}}}")
    (tmp_path / "braid.yaml").write_text("\n".join([*lines, "fusion: {weights: null}"]))
    return tmp_path


def train(folder: Path, *arguments: str) -> tuple[int, str, str]:
    command = ["train-decider", *arguments, "--into", f"{folder}/decider", "--config", f"{folder}/braid.yaml"]
    result = CliRunner().invoke(app, command)
    return result.exit_code, result.stdout, result.stderr


def test_answers_that_are_known_are_learned_without_any_model(folder: Path) -> None:
    examples = [{"text": f"{text} {i}", "answer": kind} for kind, text in KINDS.items() for i in range(20)]
    path = folder / "known.jsonl"
    path.write_text("\n".join(json.dumps(example) for example in examples))
    for name in KINDS:
        (folder / name / "model.safetensors").unlink()
    code, out, err = train(folder, str(path), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["num_texts"], told["num_held_out"], told["accuracy"]) == (40, 8, 1.0)
    assert told["answers"] == {"code": 20, "prose": 20} and told["baseline"] < 1.0
    classifier = load_classifier(folder / "decider")
    assert [classifier.decide(text) for text in KINDS.values()] == ["code", "prose"]
    assert classifier.model_hashes == {}
    code, _, err = train(folder, str(path))
    assert code == 0 and "right on 100% of 8 texts" in err


def test_the_environment_overrides_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "texts.txt").write_text("one\n\ntwo")
    monkeypatch.setenv("BRAID_SHARDS__CODE__MODEL", f"{folder}/moved")
    code, _, err = train(folder, f"{folder}/texts.txt")
    assert code == 2 and f"{folder}/moved" in err


def test_texts_alone_are_measured(folder: Path) -> None:
    (folder / "texts.txt").write_text("\n\n".join(f"{text} {i}" for text in KINDS.values() for i in range(3)))
    code, out, err = train(folder, f"{folder}/texts.txt", "--json", "--held-out", "0")
    assert code == 0, err
    assert sum(json.loads(out)["answers"].values()) == 6 and json.loads(out)["accuracy"] is None
    assert set(load_classifier(folder / "decider").model_hashes) == set(KINDS)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            '{"text": "a", "answer": "poems"}',
            "bad.jsonl:1: answer: got 'poems', expected true, false or one of",
        ),
        ('{"text": "a", "answer": 1}', "answer: got 1"),
        ('{"text": "a", "answer": "code"}\n\n{"text": "b"}', "bad.jsonl:3: some texts have an answer"),
        ('{"prompt": "a"}', "expected an object with text"),
        ("def", "bad.jsonl:1: got what is no JSON"),
        ("", "texts: got none"),
        ('{"text": "a", "answer": "code"}', "expected more than the 1 held out"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(folder: Path, lines: str, words: str) -> None:
    path = folder / "bad.jsonl"
    path.write_text(lines)
    code, _, err = train(folder, str(path))
    assert code == 2 and words in err
    assert not (folder / "decider").exists()


def test_a_folder_of_something_else_is_refused_before_anything_is_measured(folder: Path) -> None:
    (folder / "decider").mkdir()
    (folder / "decider" / "notes.txt").write_text("mine")
    code, _, err = train(folder, f"{folder}/braid.yaml")
    assert code != 0 and "holds something else" in err
