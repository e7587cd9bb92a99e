"""Texts on one axis of bytes: whatever the tokenizer, a text has the bytes that it has."""

from __future__ import annotations

import pytest
import torch
from models import byte_tokenizer, reading_backend, tiny_backend
from tokenizations import KINDS

from braid_orchestrator.evaluation import LaneReader
from braid_orchestrator.training.data import Document, MemorySource
from braid_rpc.errors import ContextLengthError, InvalidRequestError

TEXTS = ("Once upon a time, né à Zürich 🙂.", "they're  in\n\nthe 12345 Größe", "x y")


def source(*documents: Document) -> MemorySource:
    return MemorySource("given", list(documents))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_text_has_its_bytes_in_every_tokenizer(kind: str) -> None:
    reader = LaneReader(reading_backend("a", kind, 0))
    lane = reader.read(source(*(Document(text, text) for text in TEXTS)), 64)
    total = 0
    for document, text in enumerate(TEXTS):
        total += len(text.encode())
        begin, end = (int(lane.corpus.bounds[document + at]) for at in (0, 1))
        assert float(lane.ends_N[end - 1]) == pytest.approx(total)
        counted = float(lane.bytes_N[begin:end].sum())
        first_is_given = not lane.counts_N[begin] and int(lane.corpus.uncounted[document]) == 0
        assert (
            counted <= len(text.encode()) if first_is_given else counted == pytest.approx(len(text.encode()))
        )
    assert bool((lane.ends_N.diff() >= 0).all())
    assert not bool(lane.bytes_N[~lane.counts_N].any())


def test_bytes_are_those_of_each_token() -> None:
    tokenizer = byte_tokenizer()
    lane = LaneReader(tiny_backend("a", 1)).read(source(Document("a", "the né thing")), 64)
    ids = lane.corpus.token_ids_N.tolist()
    own = [len(tokenizer.convert_ids_to_tokens(token_id)) for token_id in ids]
    # Byte-level: a character of the vocabulary's entry is a byte. The first token and the end don't count.
    assert lane.bytes_N.tolist() == [0.0, *own[1:-1], 0.0]
    assert lane.counts_N.tolist() == [False, *[True] * (len(ids) - 2), False]


def test_what_stands_before_a_first_word_moves_no_token_behind_it() -> None:
    """A space that isn't the text's: every other token ends where it ends in the text."""
    backend = reading_backend("a", "llama", 0)
    text = "Once upon a time, né à Zürich"
    lane = LaneReader(backend).read(source(Document("a", text)), 64)
    encoding = backend.tokenizer.backend_tokenizer.encode(text)
    assert lane.corpus.token_ids_N.tolist()[: len(encoding)] == encoding.ids and encoding.tokens[
        1
    ].startswith("▁")
    of_bytes = [index for index, token in enumerate(encoding.tokens) if token.startswith("<0x")]
    ends = [float(len(text[:end].encode())) for _, end in encoding.offsets]
    told = zip(lane.ends_N.tolist(), ends, strict=False)
    assert all(end == expected for at, (end, expected) in enumerate(told) if at not in (1, *of_bytes))


def test_of_a_prompt_with_its_completion_the_completion_counts() -> None:
    reader = LaneReader(tiny_backend("a", 1))
    document = Document("a", " other thing", prompt="the inner")
    lane = reader.read(source(document), 64)
    assert float(lane.bytes_N.sum()) == len(" other thing")
    counted = lane.corpus.token_ids_N[lane.counts_N].tolist()
    assert byte_tokenizer().decode(counted) == " other thing"
    with pytest.raises(ContextLengthError, match="a longer window"):
        reader.read(source(document), 4)


def test_what_has_nothing_to_predict_is_refused() -> None:
    reader = LaneReader(tiny_backend("a", 1))
    with pytest.raises(InvalidRequestError, match="given: got a text of one token, expected at least two"):
        reader.read(source(Document("a", "the")), 8)
    with pytest.raises(InvalidRequestError, match="given: got no text"):
        reader.read(source(), 8)
    lane = reader.read(source(Document("a", "the"), Document("b", "the inner")), 8)
    assert torch.equal(lane.counts_N[:2], torch.tensor([False, False]))
