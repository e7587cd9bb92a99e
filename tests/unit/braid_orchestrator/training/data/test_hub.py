"""Data sets of the `datasets` library: local folders as it reads them, and what it says when it can't."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from braid_orchestrator.training.data import find_texts
from braid_orchestrator.training.data.documents import Skipped
from braid_orchestrator.training.data.hub import open_dataset, with_absolute_folder
from braid_orchestrator.training.data.origins import in_common, taken_twice
from braid_orchestrator.training.data.sources import ReadingOptions, find_source
from braid_rpc.errors import ConfigError, InvalidRequestError, NotFoundError, UnavailableError

datasets = pytest.importorskip("datasets", reason="needs the extra `data`")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits in two formats, with a column too many."""
    path = tmp_path / "verses"
    path.mkdir()
    rows = [{"text": f"train {i}", "id": i} for i in range(5)]
    (path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tests = [{"text": f"test {i}", "id": i} for i in range(2)]
    (path / "test.jsonl").write_text("\n".join(map(json.dumps, tests)))
    return path


def texts(spec: str, field: str | None = None) -> list[str]:
    source = find_source(spec, ReadingOptions(field=field))
    documents = list(source.documents(Skipped()))
    assert source.size == sum(document.size for document in documents) and source.spec == spec
    assert [document.where for document in documents] == [f"{spec}[{n}]" for n in range(len(documents))]
    return [document.text for document in documents]


def test_a_folder_is_read_by_splits(folder: Path) -> None:
    training = [f"train {i}" for i in range(5)]
    assert texts(f"hf:{folder}") == texts(f"hf:{folder}:train") == texts("hf:./verses::text") == training
    assert texts(f"hf:{folder}:test:text") == ["test 0", "test 1"]
    assert texts(f"hf:{folder}@default:train[1:3]:text") == ["train 1", "train 2"]


def test_parquet_and_prompts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    path.mkdir()
    rows = datasets.Dataset.from_dict({"prompt": ["1+1="], "completion": ["2"], "level": [1]})
    rows.to_parquet(path / "train.parquet")
    (document,) = find_source(f"hf:{path}", ReadingOptions()).documents(Skipped())
    assert (document.prompt, document.text) == ("1+1=", "2")
    assert texts(f"hf:{path}:train:completion") == texts(f"hf:{path}", "completion") == ["2"]
    assert texts(f"hf:{path}:train:completion", "prompt") == ["2"]


def test_one_split_is_known_by_whatever_name(folder: Path) -> None:
    names = {f"hf:{folder}", f"hf:{folder}:train", f"hf:{folder}:train:text"}
    names |= {"hf:verses", "hf:./verses", f"hf:{folder}@default"}
    assert len({find_source(name, ReadingOptions()).origins for name in names}) == 1


@pytest.mark.parametrize(
    ("one", "other", "is_common"),
    [
        ("train", "test", False),
        ("train", "train[:2]", True),
        ("train[:3]", "train[2:]", True),
        ("train[:60%]", "train[60%:]", False),
        ("train[-1:]", "train[:4]", False),
        ("test+train[:1]", "test[1:]", True),
        ("all", "test[1:]", True),
    ],
)
def test_parts_of_a_split_are_told_apart(folder: Path, one: str, other: str, is_common: bool) -> None:
    some, others = (open_dataset(f"hf:{folder}:{split}", None).origins for split in (one, other))
    assert (in_common(some, others) is not None) == is_common == (in_common(others, some) is not None)
    assert (taken_twice([some, others]) is not None) == is_common


def test_two_fields_of_a_row_are_two_texts_of_one_origin(tmp_path: Path) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    datasets.Dataset.from_dict({"title": ["a"], "body": ["b"]}).to_parquet(folder / "train.parquet")
    title, body = (open_dataset(f"hf:{folder}:train:{field}", None).origins for field in ("title", "body"))
    assert taken_twice([title, body]) is None
    assert taken_twice([title, body, title]) is not None
    assert in_common(title, body) is not None


def test_two_fields_of_a_row_are_not_split_each_by_itself(tmp_path: Path) -> None:
    """Else a body would be trained on whose title is held out."""
    folder = tmp_path / "sums"
    folder.mkdir()
    datasets.Dataset.from_dict({"title": ["a"], "body": ["b"]}).to_parquet(folder / "train.parquet")
    specs = [f"hf:{folder}:train:{field}" for field in ("title", "body")]
    (tmp_path / "kept.txt").write_text("kept")
    assert len(find_texts(specs, held_out=[str(tmp_path / "kept.txt")]).training) == 2
    with pytest.raises(
        InvalidRequestError, match=r":body: got rows of hf:.* of which another field is a text, too"
    ):
        find_texts(specs, held_out_share=0.1)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("hf:", InvalidRequestError, r"^hf:: expected the form hf:NAME\[@CONFIG\]\[:SPLIT\[:FIELD\]\]$"),
        ("hf:a:b:c:d", InvalidRequestError, "expected the form"),
        ("hf:{}:body", InvalidRequestError, 'cannot be loaded: Unknown split "body"'),
        ("hf:{}@french", InvalidRequestError, "cannot be loaded: BuilderConfig 'french' not found"),
        ("hf:{}:train:body", InvalidRequestError, "got the fields 'text', 'id', expected 'body'"),
        ("hf:{}:train:id", InvalidRequestError, r"train:id\[0\]: id: got int, expected a text"),
        ("hf:{}/none", NotFoundError, "no such data set: "),
        ("hf:owner/poems", UnavailableError, "hf:owner/poems: the hub cannot be reached: "),
    ],
)
def test_what_cannot_be_had_is_said(folder: Path, spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        texts(spec.format(folder))


def test_damaged_data_are_refused_with_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    path.mkdir()
    (path / "train.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(InvalidRequestError, match=rf"hf:{path}: cannot be loaded: .* \(.*JSON"):
        texts(f"hf:{path}")


def test_the_extra_is_named_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError, match=r"the package `datasets` is not installed.*pip install '\.\[data\]'"
    ):
        find_source("hf:owner/poems", ReadingOptions())


def test_rows_of_a_hub_are_read_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"text": ["a", "b"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert texts("hf:owner/poems@short:train[:10%]") == ["a", "b"]
    assert asked == [("owner/poems", "short", "train[:10%]")]


def test_a_folder_is_told_from_a_name_on_the_hub(folder: Path) -> None:
    assert with_absolute_folder("hf:verses@default:train[:2]") == f"hf:{folder}@default:train[:2]"
    (folder.parent / "file").touch()  # the library takes folders alone
    for same in (f"hf:{folder}", "hf:someone/else", "hf:a:b:c:d", "hf:file:train"):
        assert with_absolute_folder(same) == same
