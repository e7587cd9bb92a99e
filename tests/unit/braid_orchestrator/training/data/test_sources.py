"""What a user names is found and read, and what can't be is refused with its file, line or offset."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from braid_orchestrator.training.data.documents import Document, Skipped
from braid_orchestrator.training.data.sources import ReadingOptions, find_source
from braid_rpc.errors import InvalidRequestError, NotFoundError


def read(spec: Path, skipped: Skipped | None = None, **options: Any) -> list[Document]:
    source = find_source(str(spec), ReadingOptions(**options))
    documents = list(source.documents(skipped or Skipped()))
    assert source.documents(Skipped()) is not None and source.spec == str(spec)
    return documents


def texts(spec: Path, **options: Any) -> list[str]:
    return [document.text for document in read(spec, **options)]


def write_lines(path: Path, *records: Any) -> Path:
    data = "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# --- text files and folders ---------------------------------------------------------------------------------


def test_a_file_is_one_document_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "poem.xyz"  # a file that is named may end in anything
    path.write_bytes("\ufeffGröße\r\n\n  Ende".encode())
    assert read(path) == [Document(str(path), "Größe\r\n\n  Ende", size=len(path.read_bytes()))]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Gr\xf6\xdfe", r"got byte 0xf6 at offset 2, which is not UTF-8 there \(invalid start byte\)"),
        (b"caf\xc3", r"got byte 0xc3 at offset 3, which is not UTF-8 there \(unexpected end of data\)"),
        (b"\x7fELF\0\1", r"got a zero byte at offset 4, as binary files have them, expected text in UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_refused_with_the_offset(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(InvalidRequestError, match=f"^{path}: {message}"):
        read(path)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    names = [
        "b.txt",
        "a/z.md",
        "a/b/c.py",
        "B.TXT",
        "a.txt",
        ".hidden.txt",
        ".git/config.txt",
        "a/x.bin",
        "n",
    ]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    write_lines(tmp_path / "c.jsonl", {"text": "c1"}, {"text": "c2"})
    assert texts(tmp_path) == ["B.TXT", "a.txt", "a/b/c.py", "a/z.md", "b.txt", "c1", "c2"]
    assert texts(tmp_path, suffixes=(".BIN", ".md")) == ["a/x.bin", "a/z.md"]
    source = find_source(str(tmp_path), ReadingOptions())
    assert source.size == sum(document.size for document in source.documents(Skipped()))


def test_files_of_a_folder_that_are_no_text_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\0\0")
    (tmp_path / "b.txt").write_bytes(b"fine")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    skipped = Skipped()
    assert [document.text for document in read(tmp_path, skipped)] == ["fine"]
    (line,) = skipped.lines()
    assert line.startswith("2 left out: files that are not text in UTF-8; the first is ")
    assert f"{tmp_path / 'a.txt'} (got a zero byte at offset 0" in line


def test_a_folder_without_anything_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"png")
    with pytest.raises(
        InvalidRequestError, match=r"got a folder without files to read, expected some that end in .txt"
    ):
        read(tmp_path)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert texts(tmp_path) == ["a"]


def test_what_must_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inner" / "a.txt"
    path.parent.mkdir()
    path.write_text("a")
    scandir = os.scandir

    def refuse(what: Any) -> Any:
        if Path(what) in (path, path.parent):
            raise PermissionError(13, "Permission denied", str(what))
        return scandir(what)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InvalidRequestError, match=f"^{path}: cannot be read: .*Permission denied"):
        read(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InvalidRequestError, match=f"^{path.parent}: cannot be read: .*Permission denied"):
        read(tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        NotFoundError, match=f"{tmp_path / 'no.txt'}: no such file or folder; a data set is named hf:"
    ):
        find_source(str(tmp_path / "no.txt"), ReadingOptions())
    with pytest.raises(InvalidRequestError, match=r"cannot be read: .*File name too long"):
        find_source("x" * 5000, ReadingOptions())


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequestError, match="pipe: got neither a file nor a folder"):
        find_source(str(tmp_path / "pipe"), ReadingOptions())


@pytest.mark.parametrize(("suffixes", "got"), [((), "none"), (("txt",), "'txt'"), ((".a", "."), "'.'")])
def test_suffixes_begin_with_a_dot(suffixes: tuple[str, ...], got: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"suffixes: got {got}, expected suffixes such as '.txt'"):
        ReadingOptions(suffixes)


# --- JSON lines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_line_is_a_document(tmp_path: Path, suffix: str) -> None:
    path = write_lines(tmp_path / f"a{suffix}", {"text": "é\n"}, {"text": "b", "id": 1}, {"text": ""})
    documents = read(path)
    assert [document.text for document in documents] == ["é\n", "b", ""]
    assert [document.where for document in documents] == [f"{path}:{n}" for n in (1, 2, 3)]
    assert sum(document.size for document in documents) == path.stat().st_size
    assert all(document.prompt is None for document in documents)


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}\n')
    assert [(document.text, document.where) for document in read(path)] == [
        ("a", f"{path}:1"),
        ("b", f"{path}:4"),
    ]


def test_prompts_and_completions_are_told_by_their_fields(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "1+1=", "completion": "2"}, {"text": "plain"})
    assert [(document.prompt, document.text) for document in read(path)] == [("1+1=", "2"), (None, "plain")]


def test_another_field_can_be_asked_for(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "a", "body": "b", "prompt": "c", "completion": "d"})
    assert texts(path, field="body") == ["b"]
    assert texts(path, field="text") == ["a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'text': 1}", r"got what is no JSON \(Expecting property name.*\), expected a JSON object"),
        (b"[" * 100_000, "got what is no JSON"),
        (b'"text"', "got '\"text\"', expected a JSON object"),
        (
            b'{"body": "b", "id": 1}',
            "got the fields 'body', 'id', expected 'text', or 'prompt' and 'completion'$",
        ),
        (b"{}", "got the fields none, expected 'text'"),
        (b'{"prompt": "b"}', "got the fields 'prompt', expected 'text', or 'prompt' and 'completion'"),
        (
            b'{"text": "a", "prompt": "b", "completion": "c"}',
            "got the fields 'text', 'prompt', 'completion', expected .*, not both; or to be told which field it is",
        ),
        (b'{"text": 17}', "text: got int, expected a text"),
        (b'{"prompt": "a", "completion": null}', "completion: got NoneType, expected a text"),
        (b'{"text": "ab\\ud800"}', "text: got a lone surrogate at character 2, expected valid Unicode text"),
        (b'{"text": "\xe9"}', r"got byte 0xe9 at offset 10 of the line, which is not UTF-8 there"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(InvalidRequestError, match=f"^{path}:3: {message}"):
        read(path)


def test_a_field_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(InvalidRequestError, match=f"{path}:1: got the fields 'text', expected 'body'$"):
        read(path, field="body")


def test_a_damaged_archive_is_refused_with_the_line_it_reaches(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl.gz", *({"text": os.urandom(50).hex()} for _ in range(2000)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InvalidRequestError, match=rf"{path}: cannot be read after line \d\d+: Compressed file ended"
    ):
        read(path)
    path.write_bytes(b"no archive")
    with pytest.raises(InvalidRequestError, match=f"{path}: cannot be read after line 0: Not a gzipped file"):
        read(path)
    path.write_bytes(whole[:200] + bytes(50) + whole[250:])
    with pytest.raises(InvalidRequestError, match=f"{path}: cannot be read after line"):
        read(path)
