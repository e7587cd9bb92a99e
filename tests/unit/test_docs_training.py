"""docs/training.md: its code runs, and its table is the configuration's."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from docblocks import REPOSITORY, code_blocks, table_under
from models import save_tiny_model

from braid_fusion import TrainingConfig
from braid_fusion.training.checkpoint import steps_in
from braid_orchestrator.training.data import TEXT_SUFFIXES, hub
from braid_orchestrator.training.data.json_lines import JSON_LINES_SUFFIXES

TRAINING = REPOSITORY / "docs" / "training.md"


def test_the_training_that_is_shown_learns_goes_on_and_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_model(tmp_path / ".braid" / "demo" / "prose", 1, num_layers=4)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    grafts, going_on, core = code_blocks(TRAINING, "python")
    grafts.run(namespace)
    results = namespace["results"]
    assert results.best_loss < results.evaluations[0].values["loss"]
    assert capsys.readouterr().out.split()[0] == results.stopped_by
    assert {path.name for path in (tmp_path / "runs" / "first").iterdir()} == {
        "checkpoints",
        "fusion_weights.safetensors",
        "log.jsonl",
        "training.png",
    }
    going_on.run(namespace)
    assert namespace["results"].to_dict() == results.to_dict()  # it was at its end

    core.run(namespace)
    record = namespace["record"]
    assert record.best_value < record.evaluations[0].values["loss"]
    assert record.stopped_by == "steps"
    assert steps_in(tmp_path / "runs" / "own" / "checkpoints")[-1][0] == record.steps
    assert (tmp_path / "runs" / "own" / "training.png").is_file()


def test_every_key_of_a_training_is_documented_with_its_default() -> None:
    rows = table_under(TRAINING, "Grafted layers").by_first_column()
    assert list(rows) == [field.name for field in fields(TrainingConfig)]
    for field in fields(TrainingConfig):
        documented = rows[field.name]["default"].strip("`")
        assert field.default is not MISSING
        expected = list(field.default) if isinstance(field.default, tuple) else field.default
        found = yaml.safe_load(documented)
        assert (float(found) if isinstance(expected, float) else found) == expected, field.name


def test_the_ways_to_name_a_text_are_documented_as_they_are() -> None:
    rows = table_under(TRAINING, "Data").by_first_column()
    assert tuple(re.findall(r"`(\.[\w.]+)`", rows["a folder"]["documents"])) == TEXT_SUFFIXES
    assert hub.FORM in rows
    assert [name for name in rows if all(f"`{suffix}" in name for suffix in JSON_LINES_SUFFIXES)]
