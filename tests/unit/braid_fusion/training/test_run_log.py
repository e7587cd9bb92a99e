"""Log, picture and progress bar: what a run shows of itself."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from strict_parsing import parse_strictly
from training_runs import tiny_trainer

from braid_fusion.errors import TrainingError
from braid_fusion.training import Progress, plot_training, read_log
from braid_fusion.training.progress_bar import ProgressBar
from braid_fusion.training.run_log import RunLog


def test_a_new_run_begins_the_log_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for value in (1, 2):
        with RunLog(path) as log:
            log.write({"step": 1, "value": value})
    assert read_log(path) == [{"step": 1, "value": 2}]


def test_a_resumed_log_has_each_step_once_and_no_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"step": step, "loss": step / 3} for step in range(1, 8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "lo')
    with RunLog(path, resume_step=4) as log:
        assert log.lines == lines[:4]
        log.write({"step": 5, "loss": 0.5})
    assert read_log(path) == [*lines[:4], {"step": 5, "loss": 0.5}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_is_none_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    text = '{"step": 1}\nshopping list\n{"step": 2}\n'
    path.write_text(text)
    with pytest.raises(TrainingError, match=r"log\.jsonl:2: got 'shopping list"), RunLog(path, resume_step=2):
        pass
    assert path.read_text() == text


def test_a_line_that_is_not_utf_8_is_named_unless_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "note": "\xff"}\n{"step": 3}\n')
    with pytest.raises(TrainingError, match=r"log\.jsonl:2: got '\{\"step\": 2, .*expected a JSON object"):
        read_log(path)
    path.write_bytes(b'{"step": 1}\n{"step": 2, "note": "\xc3')
    assert read_log(path) == [{"step": 1}]


def test_each_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.write({"step": 1})
        assert read_log(path) == [{"step": 1}]


def test_a_figure_that_is_not_finite_is_null_and_a_gap_in_the_picture(tmp_path: Path) -> None:
    path, picture = tmp_path / "log.jsonl", tmp_path / "picture.png"
    path.write_text('{"step": 1, "loss": Infinity}\n')  # as earlier versions wrote it
    step = {"smoothed_loss": 1.0, "learning_rate": 0.1}
    with RunLog(path, resume_step=1) as log:
        for number, figure in enumerate((math.nan, 1.0, -math.inf), start=2):
            log.write({"step": number, "loss": figure, **step})
            log.write({"step": number, "evaluation": {"loss": figure}})
    lines = [parse_strictly(line) for line in path.read_text().splitlines()]
    assert lines == read_log(path) and log.lines[1:] == lines[1:]
    assert [line["loss"] for line in lines if "loss" in line] == [None, None, 1.0, None]
    assert [line["evaluation"]["loss"] for line in lines if "evaluation" in line] == [None, 1.0, None]
    for drawn in (lines[1:], [line for line in lines[1:] if line["step"] == 2]):
        picture.unlink(missing_ok=True)
        plot_training(drawn, picture)
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_is_drawn_of_a_runs_log(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.run()
    for name, log in (("lines", trainer.history), ("file", tmp_path / "log.jsonl")):
        picture = tmp_path / "pictures" / f"{name}.png"
        plot_training(log, picture)
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "pictures" / "lines.png").stat().st_size > 10_000
    with pytest.raises(TrainingError, match="got a log of 0 lines"):
        plot_training([], tmp_path / "none.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    lines = [{"step": 1, "loss": 1.0, "smoothed_loss": 1.0, "learning_rate": 0.1}]
    with pytest.raises(TrainingError, match=r"pip install '\.\[plots\]'"):
        plot_training(lines, tmp_path / "picture.png")


@pytest.mark.parametrize("shown", [True, False, None])
def test_a_bar_is_shown_when_asked_or_on_a_terminal(
    shown: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar(10, shown=shown) as bar:
        for step in (4, 5, 10):
            bar.show(Progress(step, step / 10, 1.25, float(step)))
    text = capsys.readouterr().err
    assert ("10/10" in text and "loss=1.2500" in text) if shown else text == ""
