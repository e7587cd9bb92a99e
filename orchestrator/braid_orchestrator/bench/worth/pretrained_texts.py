"""The texts of the experiment with a pretrained model: what it knows, what its partner reads, and both mixed.

What it knows is given, in documents that a hash of each divides. The partner's is the prose of this Python
installation, divided by file as for the two specialists. In the mix, parts of both alternate. Knows no tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from braid_orchestrator.bench.worth.texts import (
    MIX,
    ContestTexts,
    TextAmounts,
    divide,
    is_kept,
    middles,
    percentile,
)
from braid_orchestrator.demo.corpus import Corpus, mixed_texts
from braid_orchestrator.demo.fuse import even_sample
from braid_orchestrator.training.data.documents import Skipped
from braid_orchestrator.training.data.sources import ReadingOptions, find_source
from braid_rpc.errors import InvalidRequestError

KNOWN, PROSE = "anchor's text", "prose"
TEXTS = (MIX, KNOWN, PROSE)
_END_OF_DOCUMENT = re.compile(r"^<\|endoftext\|>[ \t]*$", re.MULTILINE)
_VALIDATION_PERCENT, _TEST_PERCENT = 6, 8


@dataclass(frozen=True, slots=True)
class KnownText:
    """Text that the anchor knows, in documents that are all different, divided into sides."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 (hex, 16 digits) over all documents and where they are."""
        digest = hashlib.sha256()
        for side in (self.train, self.validation, self.test):
            for text in (*side, ""):
                digest.update(f"{text}\0".encode())
        return digest.hexdigest()[:16]


def read_known_text(path: Path) -> KnownText:
    """A file or folder as for training; in a file, lines of ``<|endoftext|>`` end documents.

    Raises: InvalidRequestError for too few documents for all sides; NotFoundError.
    """
    source = find_source(str(path), ReadingOptions())
    texts = dict.fromkeys(
        text.strip() + "\n"
        for document in source.documents(Skipped())
        for text in _END_OF_DOCUMENT.split(document.text)
        if text.strip()
    )
    sides: dict[str, list[str]] = {"validation": [], "test": [], "train": []}
    for text in texts:
        place = percentile("known", text)
        left = place - _VALIDATION_PERCENT
        sides["validation" if left < 0 else "test" if left < _TEST_PERCENT else "train"].append(text)
    if not all(sides.values()):
        raise InvalidRequestError(
            f"{path}: got {len(texts)} different documents, expected enough for {_VALIDATION_PERCENT} percent to "
            f"validate and {_TEST_PERCENT} to test. In a file, lines of <|endoftext|> end documents"
        )
    return KnownText(**{side: tuple(kept) for side, kept in sides.items()})


def partner_texts(corpus: Corpus, amounts: TextAmounts) -> list[str]:
    """What the partner reads."""
    return [one.text for one in corpus.specialist if one.kind == "prose" and not is_kept(one, amounts)]


def pretrained_texts(known: KnownText, corpus: Corpus, amounts: TextAmounts) -> ContestTexts:
    """The same for every seed but for what trains. Raises: ValueError where a kind of text is missing from a part."""
    prose = [
        [one.text for one in side if one.kind == "prose"]
        for side in divide(
            {"specialist": corpus.specialist, "fusion": corpus.fusion, "held_out": corpus.held_out}, amounts
        )
    ]
    train = mixed_texts(known.train, prose[0], num_chars=amounts.mixed_chars, seed=amounts.seed)
    train += _first(Random(amounts.seed).sample(known.train, len(known.train)), amounts.pure_chars)
    train += even_sample(prose[0], amounts.pure_chars)
    return ContestTexts(
        train,
        _held_out(known.validation, prose[1], amounts.validation_chars, seed=1),
        _held_out(known.test, prose[2], amounts.test_chars, seed=2),
    )


def _held_out(known: Sequence[str], prose: Sequence[str], num_chars: int, seed: int) -> dict[str, list[str]]:
    return {
        MIX: mixed_texts(known, prose, num_chars=num_chars, seed=seed),
        KNOWN: _first(known, num_chars),
        PROSE: middles(prose, num_chars),
    }


def _first(texts: Sequence[str], num_chars: int) -> list[str]:
    """Whole texts, the last one cut."""
    taken: list[str] = []
    for text in texts:
        if num_chars <= 0:
            break
        taken.append(text[:num_chars])
        num_chars -= len(text)
    return taken
