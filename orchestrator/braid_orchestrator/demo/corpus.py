"""Text that every Python installation carries, as documents of code and prose in three disjoint splits.

Code is the standard library's source without comments and docstrings; prose is those docstrings, the longer
comments, the language reference in `pydoc_data.topics` and plain text files of the installation. The split is
by file: what stands in a held-out file, code or prose, is trained on nowhere. Passages that stand in several
files (the reference repeats itself) are kept only in the first split that has them. Knows no tokens.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import random
import re
import sysconfig
import textwrap
import tokenize
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

Kind = Literal["code", "prose"]
Split = Literal["specialist", "fusion", "held_out"]

# Of every 100 files. The fusion modules must see the specialists on text that is new to them, as otherwise
# the readout learns a confidence that the specialists only have on what they were trained on.
SPLIT_PERCENT: dict[Split, int] = {"specialist": 82, "fusion": 11, "held_out": 7}

# Tests, tables and what is not the standard library's own.
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)
MIN_DOCUMENT_CHARS = 200
MIN_SHARED_PASSAGE_CHARS = 60
MAX_FILE_CHARS = 400_000


@dataclass(frozen=True, slots=True)
class Document:
    """One text. ``source`` names the file that it came from, and decides its split."""

    source: str
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """All documents of one installation."""

    specialist: tuple[Document, ...]
    fusion: tuple[Document, ...]
    held_out: tuple[Document, ...]

    def texts(self, split: Split, kind: Kind) -> list[str]:
        """The texts of one kind in one split, in a fixed order."""
        return [document.text for document in getattr(self, split) if document.kind == kind]

    def fingerprint(self) -> str:
        """SHA-256 (hex, 16 digits) over all texts and where they are."""
        digest = hashlib.sha256()
        for split in SPLIT_PERCENT:
            for document in getattr(self, split):
                digest.update(f"{split}\0{document.kind}\0{document.source}\0{document.text}\0".encode())
        return digest.hexdigest()[:16]


def split_of(source: str) -> Split:
    """The split that a file belongs to, from its name alone."""
    bucket = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") % 100
    for split, percent in SPLIT_PERCENT.items():
        if bucket < percent:
            return split
        bucket -= percent
    raise ValueError(f"SPLIT_PERCENT sums to {sum(SPLIT_PERCENT.values())}, expected 100")


def separate_code_and_prose(source_text: str) -> tuple[str, str]:
    """Take a module's source apart into code without comments and docstrings, and the prose of those.

    Raises: SyntaxError or ValueError if it is not Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like in old sources
        tree = ast.parse(source_text)
    lines = source_text.splitlines(keepends=True)
    passages = _take_docstrings(tree, lines)
    code = _STRING_OR_COMMENT.sub(lambda found: found["string"] or "", "".join(lines))
    code = re.sub(r"[ \t]+\n", "\n", code)
    code = re.sub(r"\n{3,}", "\n\n", code).strip("\n") + "\n"
    passages += [_uncommented(block) for block in _COMMENT_BLOCK.findall("\n" + source_text)]
    prose = "\n\n".join(passage for passage in passages if _reads_as_prose(passage))
    return code, prose + "\n" if prose else ""


_STRING_OR_COMMENT = re.compile(
    r"""(?P<string>\"{3}(?:[^\\]|\\.)*?\"{3}|'{3}(?:[^\\]|\\.)*?'{3}|\"(?:[^\\\n\"]|\\.)*\"|'(?:[^\\\n']|\\.)*')"""
    r"|\#[^\n]*",
    re.DOTALL,
)
# Comments of at least three lines in a row are prose; shorter ones are remarks.
_COMMENT_BLOCK = re.compile(r"(?:\n[ \t]*\#[^\n]*){3,}")


def _take_docstrings(node: ast.AST, lines: list[str]) -> list[str]:
    """The docstrings of a module in the order of the source; ``lines`` loses them."""
    docstrings: list[str] = []
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring is not None and isinstance(node.body[0], ast.Expr):
            docstrings.append(docstring)
            _blank(node.body[0], lines, is_whole_body=len(node.body) == 1)
    for field in ("body", "handlers", "orelse", "finalbody"):  # definitions stand in statements only
        children = getattr(node, field, ())
        for child in children if isinstance(children, list) else ():
            docstrings += _take_docstrings(child, lines)
    return docstrings


def _blank(expression: ast.Expr, lines: list[str], *, is_whole_body: bool) -> None:
    """Remove a docstring. What stands beside it on its lines stays; a body needs something in its place."""
    first, last = expression.lineno - 1, (expression.end_lineno or expression.lineno) - 1
    head = lines[first].encode()[: expression.col_offset].decode()
    tail = lines[last].encode()[expression.end_col_offset :].decode()
    lines[first : last + 1] = [""] * (last + 1 - first)
    if is_whole_body or head.strip() or tail.strip():
        lines[first] = head + "..." + tail


def _uncommented(block: str) -> str:
    lines = [line.strip().lstrip("#!").rstrip() for line in block.strip("\n").split("\n")]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _reads_as_prose(text: str) -> bool:
    words = re.findall(r"[A-Za-z]{2,}", text)
    return len(words) >= 4 and sum(map(len, words)) > 0.45 * len(text)


def read_corpus(stdlib: Path | None = None, *, share: float = 1.0) -> Corpus:
    """Read the installation's text: a few seconds. The same installation always gives the same corpus.

    Args:
        stdlib: folder of the standard library; None: that of the running interpreter.
        share: of the files, about; the same ones each time.
    """
    folder = stdlib if stdlib is not None else Path(sysconfig.get_path("stdlib"))
    documents = [*_module_documents(folder, share), *_topic_documents(share), *_text_file_documents(folder)]
    documents.sort(key=lambda document: (document.kind, document.source))
    by_split: dict[Split, list[Document]] = {split: [] for split in SPLIT_PERCENT}
    for document in documents:
        by_split[split_of(document.source)].append(document)
    seen: set[bytes] = set()
    kept = {split: tuple(_without_seen(by_split[split], seen)) for split in SPLIT_PERCENT}
    return Corpus(**kept)


def read_modules(corpus: Corpus, stdlib: Path | None = None) -> dict[Split, tuple[Document, ...]]:
    """The modules that a corpus's code was taken from, as they stand: code and prose as their authors mixed them.

    They are in the corpus's splits, and lose passages that earlier splits have, as its documents do.

    Args:
        stdlib: the folder that the corpus was read from.
    """
    folder = stdlib if stdlib is not None else Path(sysconfig.get_path("stdlib"))
    seen: set[bytes] = set()
    modules: dict[Split, tuple[Document, ...]] = {}
    for split in SPLIT_PERCENT:
        sources = [document.source for document in getattr(corpus, split) if document.kind == "code"]
        documents = [Document(source, "code", _read_module(folder / source)) for source in sources]
        modules[split] = tuple(_without_seen(documents, seen))
    return modules


def _read_module(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read(MAX_FILE_CHARS)


def _files(folder: Path, suffix: str) -> Iterator[tuple[str, Path]]:
    """Files of that ending, named from the folder on. Excluded folders, which may be huge, are not entered."""
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_excluded(name)]
        for name in names:
            if name.endswith(suffix) and not _is_excluded(name):
                path = Path(where, name)
                yield path.relative_to(folder).as_posix(), path


def _is_excluded(name: str) -> bool:
    return name in EXCLUDED_FOLDERS or name.startswith(("config-3", "_sysconfigdata"))


def _is_in_share(source: str, share: float) -> bool:
    return share >= 1.0 or hashlib.sha256(source.encode()).digest()[4] < share * 256


def _module_documents(folder: Path, share: float) -> Iterator[Document]:
    for source, path in _files(folder, ".py"):
        if not _is_in_share(source, share):
            continue
        try:
            code, prose = separate_code_and_prose(_read_module(path))
        except (OSError, SyntaxError, ValueError):
            continue  # templates, broken on purpose or unreadable: not text to learn from
        yield Document(source, "code", code)
        yield Document(source, "prose", prose)


def _topic_documents(share: float) -> Iterator[Document]:
    """The language reference that `help()` shows; some distributions leave it out."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return
    for name, text in sorted(topics.items()):
        source = f"pydoc_data/topics/{name}"
        if _is_in_share(source, share):
            yield Document(source, "prose", text.strip("\n") + "\n")


def _text_file_documents(folder: Path) -> Iterator[Document]:
    for source, path in _files(folder, ".txt"):
        try:
            text = path.read_text(encoding="utf-8")[:MAX_FILE_CHARS]
        except (OSError, UnicodeDecodeError):
            continue
        if _reads_as_prose(text):
            yield Document(source, "prose", text.strip("\n") + "\n")


def _without_seen(documents: Iterable[Document], seen: set[bytes]) -> Iterator[Document]:
    """Leave out passages (between blank lines) that earlier splits had, in any layout, and then texts with
    little left. Prose also loses what it repeats in its own split; code may repeat itself."""
    fresh: set[bytes] = set()
    for document in documents:
        kept = []
        for passage in re.split(r"\n\s*\n", document.text.strip("\n")):
            key = _passage_key(passage)
            if key in seen or (document.kind == "prose" and key in fresh):
                continue
            kept.append(passage)
            if len(passage) >= MIN_SHARED_PASSAGE_CHARS:
                fresh.add(key)
        text = "\n\n".join(kept) + "\n"
        if len(text) >= MIN_DOCUMENT_CHARS:
            yield Document(document.source, document.kind, text)
    seen |= fresh


def _passage_key(passage: str) -> bytes:
    return hashlib.sha256("".join(passage.split()).encode()).digest()[:12]


def mixed_texts(
    code: Sequence[str],
    prose: Sequence[str],
    *,
    num_chars: int,
    seed: int,
    part_chars: tuple[int, int] = (200, 900),
    document_chars: int = 4000,
) -> list[str]:
    """Documents in which parts of code and of prose alternate, together about ``num_chars`` long.

    Args:
        code, prose: the texts to take from, each part from one of them, whole lines, drawn evenly over them.
        part_chars: shortest and longest part; the longest line may add to it.
        document_chars: length of a mixed document.

    Raises: ValueError if either kind is missing.
    """
    if not code or not prose:
        raise ValueError(f"got {len(code)} texts of code and {len(prose)} of prose, expected some of each")
    rng = random.Random(seed)
    kinds = (_Parts(code, rng, part_chars), _Parts(prose, rng, part_chars))
    documents: list[str] = []
    total = 0
    while total < num_chars:
        turn = rng.randrange(2)
        parts: list[str] = []
        length = 0
        while length < document_chars:
            parts.append(kinds[turn].next())
            length += len(parts[-1]) + 2
            turn = 1 - turn
        documents.append("\n\n".join(parts) + "\n")
        total += length
    return documents


class _Parts:
    """Draws parts of texts: longer texts in proportion more often, each going on where it was left."""

    def __init__(self, texts: Sequence[str], rng: random.Random, part_chars: tuple[int, int]) -> None:
        self._lines = [text.strip("\n").splitlines() for text in texts]
        self._cumulative = list(accumulate(len(text) for text in texts))
        self._next_line = [0] * len(texts)
        self._rng = rng
        self._part_chars = part_chars

    def next(self) -> str:
        """A part of at least the length drawn for it, if its text has that much."""
        wanted = self._rng.randint(*self._part_chars)
        index = bisect_right(self._cumulative, self._rng.randrange(self._cumulative[-1]))
        lines = self._lines[index]
        start = self._next_line[index]
        end, length = start, 0
        while end < len(lines) and length < wanted:
            length += len(lines[end]) + 1
            end += 1
        self._next_line[index] = end if end < len(lines) else 0
        return "\n".join(lines[start:end]).strip("\n")
