"""Texts to train a decider with, out of files, perhaps with who should answer them. Knows no models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from braid_fusion.deciding import Answerer
from braid_rpc.errors import InvalidRequestError


def read_examples(paths: Sequence[Path], shards: Sequence[str]) -> tuple[list[str], list[Answerer] | None]:
    """The texts of files, one per line, and who should answer them; None where no line says so.

    Lines of files that end in ``.jsonl`` are objects with ``text`` and perhaps ``answer``.
    Raises: InvalidRequestError, naming file and line.
    """
    texts: list[str] = []
    answers: list[Answerer] = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"{path}: cannot be read: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            example = _example(where, line, shards) if path.suffix == ".jsonl" else {"text": line}
            texts.append(example["text"])
            answers += [example["answer"]] if "answer" in example else []
            if answers and len(answers) != len(texts):
                raise InvalidRequestError(f"{where}: some texts have an answer, expected all of them or none")
    if not texts:
        raise InvalidRequestError("texts: got none, expected at least one line")
    return texts, answers or None


def _example(where: str, line: str, shards: Sequence[str]) -> dict[str, Any]:
    try:
        example = json.loads(line)
    except ValueError as error:
        raise InvalidRequestError(f"{where}: got what is no JSON: {error}") from error
    if (
        not isinstance(example, dict)
        or not isinstance(example.get("text"), str)
        or example.keys() - {"text", "answer"}
    ):
        raise InvalidRequestError(
            f"{where}: got {line[:60]!r}, expected an object with text and perhaps answer"
        )
    answer = example.get("answer", True)
    if not isinstance(answer, bool) and answer not in shards:
        raise InvalidRequestError(
            f"{where}: answer: got {answer!r}, expected true, false or one of the shards: {', '.join(shards)}"
        )
    return example
