"""The demo's corpus: code without prose, disjoint splits, the same each time, there even where parts are missing."""

from __future__ import annotations

import ast
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from braid_orchestrator.demo.corpus import (
    SPLIT_PERCENT,
    Corpus,
    Document,
    mixed_texts,
    read_corpus,
    read_modules,
    separate_code_and_prose,
    split_of,
)

SOURCE = '''"""The module's docstring, which says what it is for."""
import os  # a remark

# Several lines of comment
# that together say something
# worth reading as prose.
LETTERS = "# not a comment"  # but this is


class Reader:
    """Reads things from places that are far away."""

    def read(self):
        """Return what is there, all of it at once."""
        return """neither # a docstring"""

    def close(self): """Close whatever was opened before this."""

    def only_documented(self):
        """This function has nothing but words in it."""
'''


def test_code_loses_comments_and_docstrings_and_nothing_else() -> None:
    code, prose = separate_code_and_prose(SOURCE)
    assert code == (
        'import os\n\nLETTERS = "# not a comment"\n\nclass Reader:\n\n    def read(self):\n'
        '        return """neither # a docstring"""\n\n    def close(self): ...\n\n'
        "    def only_documented(self):\n        ...\n"
    )
    assert prose.split("\n\n") == [
        "The module's docstring, which says what it is for.",
        "Reads things from places that are far away.",
        "Return what is there, all of it at once.",
        "Close whatever was opened before this.",
        "This function has nothing but words in it.",
        "Several lines of comment\nthat together say something\nworth reading as prose.\n",
    ]


def test_code_still_means_the_same() -> None:
    source = Path(ast.__file__).read_text()
    code, _ = separate_code_and_prose(source)
    assert ast.dump(_without_docstrings(ast.parse(code))) == ast.dump(_without_docstrings(ast.parse(source)))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return tree


def test_a_syntax_error_is_raised() -> None:
    with pytest.raises(SyntaxError):
        separate_code_and_prose("def broken(:\n")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus(share=0.08)


def test_no_passage_stands_in_two_splits(corpus: Corpus) -> None:
    def passages(documents: tuple[Document, ...]) -> set[str]:
        parts = (part for document in documents for part in re.split(r"\n\s*\n", document.text))
        return {"".join(part.split()) for part in parts if len(part) >= 100}

    specialist, fusion, held_out = (passages(getattr(corpus, split)) for split in SPLIT_PERCENT)
    assert specialist and fusion and held_out
    assert not specialist & fusion
    assert not specialist & held_out
    assert not fusion & held_out


def test_a_file_is_in_one_split_with_all_that_it_has(corpus: Corpus) -> None:
    for split in SPLIT_PERCENT:
        assert all(split_of(document.source) == split for document in getattr(corpus, split))


def test_the_splits_have_about_the_shares_that_they_should() -> None:
    found = [split_of(f"folder/file{number}.py") for number in range(4000)]
    for split, percent in SPLIT_PERCENT.items():
        assert found.count(split) / 40 == pytest.approx(percent, abs=2.5)


def test_the_corpus_is_the_same_each_time(corpus: Corpus) -> None:
    assert read_corpus(share=0.08).fingerprint() == corpus.fingerprint()
    assert read_corpus(share=0.05).fingerprint() != corpus.fingerprint()


def test_nothing_comes_from_tests_or_installed_packages(corpus: Corpus) -> None:
    folders = {part for document in corpus.specialist for part in Path(document.source).parts[:-1]}
    assert not folders & {"test", "tests", "site-packages", "encodings"}


def test_missing_parts_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "latin.py").write_bytes(b"name = '\xe9'\n")
    for number in range(40):
        (tmp_path / f"module{number}.py").write_text(
            f'"""Documentation of module {number}, {"with many words of its own " * 8}{number}."""\n'
            + "\n".join(f"value_{number}_{line} = {line} + other_value" for line in range(20))
        )
    corpus = read_corpus(tmp_path)
    assert corpus.texts("specialist", "code") and corpus.texts("specialist", "prose")
    sources = {document.source for split in SPLIT_PERCENT for document in getattr(corpus, split)}
    assert sources <= {f"module{number}.py" for number in range(40)}


def test_mixed_texts_alternate_and_repeat_with_the_seed() -> None:
    code = ["\n".join(f"code line {n}-{line}" for line in range(200)) for n in range(3)]
    prose = ["\n".join(f"prose line {n}-{line}" for line in range(200)) for n in range(3)]
    texts = mixed_texts(code, prose, num_chars=20_000, seed=1, part_chars=(100, 200))
    assert sum(map(len, texts)) >= 20_000
    for text in texts:
        kinds = [part.split()[0] for part in text.split("\n\n")]
        assert set(kinds) == {"code", "prose"}
        assert all(left != right for left, right in pairwise(kinds))
    assert texts == mixed_texts(code, prose, num_chars=20_000, seed=1, part_chars=(100, 200))
    assert texts != mixed_texts(code, prose, num_chars=20_000, seed=2, part_chars=(100, 200))


def test_a_mix_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="0 of prose"):
        mixed_texts(["code"], [], num_chars=10, seed=0)


def test_modules_come_as_they_stand_in_the_splits_of_their_code(tmp_path: Path) -> None:
    shared = "# A passage of some length that stands in every module, such as a licence would.\n\n"
    for number in range(60):
        own = f'def name_{number}(self):\n    """Give number {number}."""\n    return {number}\n' * 9
        (tmp_path / f"module_{number}.py").write_text(shared + own, encoding="utf-8")
    corpus = read_corpus(tmp_path)
    modules = read_modules(corpus, tmp_path)
    for split in SPLIT_PERCENT:
        assert [one.source for one in modules[split]] == [
            one.source for one in getattr(corpus, split) if one.kind == "code"
        ]
        assert modules[split] and all('"""Give number' in one.text for one in modules[split])
        assert all(shared.strip() in one.text for one in modules[split]) == (split == "specialist")
