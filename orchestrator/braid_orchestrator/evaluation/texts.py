"""Texts to be predicted, as each tokenizer of a braid reads them. Runs no model.

Every tokenizer has tokens of its own, but the bytes of a text are the same for all. So each token that counts is
given the bytes that it stands for and the place where it ends on one axis of bytes, on which tokens of different
tokenizers can be told to stand for the same part of the text.

What counts is the text itself: neither what a tokenizer puts around it, nor a prompt before a completion, nor a
document's first token where nothing stands before it.

Letters: N tokens of a corpus, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_fusion.alignment import token_pieces
from braid_fusion.plan import BraidPlan
from braid_orchestrator.inprocess.whole_lanes import Reader
from braid_orchestrator.training.data import DocumentEncoder, TokenCorpus, encode_source
from braid_orchestrator.training.data.documents import Document, Skipped
from braid_orchestrator.training.data.sources import (
    MemorySource,
    ReadingOptions,
    TextSource,
    find_source,
    refuse_taken_twice,
)
from braid_rpc.errors import InvalidRequestError

ALL_TEXTS = "all together"
_BLANK = "documents of nothing but white space"


@dataclass(frozen=True, eq=False)
class LaneText:
    """A text as one tokenizer reads it. ``counts_N``: which tokens are part of the text and have something before
    them. ``bytes_N``, float64: the bytes that those stand for, 0 for others; ``ends_N``: where each ends, in bytes
    from the beginning of the first document."""

    corpus: TokenCorpus
    counts_N: Tensor  # noqa: N815 - shape letters
    bytes_N: Tensor  # noqa: N815 - shape letters
    ends_N: Tensor  # noqa: N815 - shape letters


@dataclass(frozen=True, eq=False)
class EvaluationText:
    """A named text; ``lanes`` in the order of the plan's lanes, the anchor's first, all with the same documents."""

    name: str
    lanes: tuple[LaneText, ...]

    @property
    def num_documents(self) -> int:
        """Those that have text in them."""
        return self.lanes[0].corpus.num_documents


class LaneReader:
    """One tokenizer, as texts are read by it."""

    def __init__(self, shard: Reader) -> None:
        """Raises: ConfigError for an unreadable tokenizer."""
        card, tokenizer_json = shard.card, shard.tokenizer_json()
        self.encoder = DocumentEncoder(tokenizer_json, card.eos_token_ids)
        pieces = token_pieces(tokenizer_json, card.vocab_size)
        self._sizes_V = torch.tensor([len(piece) for piece in pieces], dtype=torch.float64)

    def read(self, source: MemorySource, window: int, skipped: Skipped | None = None) -> LaneText:
        """All documents, none of them blank; prompts with their completions must fit into ``window``.

        Raises: InvalidRequestError for a text without anything to predict; ContextLengthError.
        """
        corpus = encode_source(source, self.encoder, max_example_tokens=window + 1, skipped=skipped)
        if corpus.num_documents != len(source.given):
            raise InvalidRequestError(
                f"{source.spec}: got tokens for {corpus.num_documents} documents out of {len(source.given)}, "
                "expected every shard's tokenizer to have some for each"
            )
        text_bytes = torch.tensor([len(one.text.encode()) for one in source.given], dtype=torch.float64)
        lane = _lane_text(corpus, self._sizes_V, text_bytes, len(self.encoder.end_ids))
        if not lane.counts_N.any():
            raise InvalidRequestError(f"{source.spec}: got a text of one token, expected at least two")
        return lane


class LaneReaders:
    """All tokenizers of a braid."""

    def __init__(self, shards: Sequence[Reader], plan: BraidPlan) -> None:
        """``shards``: one per shard of the plan, in its order. Raises: as `LaneReader`."""
        leaders = [plan.anchor, *(plan.lane_of.index(lane) for lane in range(1, plan.num_lanes))]
        self._readers = [LaneReader(shards[leader]) for leader in leaders]

    @property
    def anchor(self) -> LaneReader:
        """The anchor's."""
        return self._readers[0]

    def read(
        self, name: str, documents: Iterable[Document], window: int, skipped: Skipped | None = None
    ) -> EvaluationText:
        """A text of these documents. ``skipped`` is told what is left out. Raises: as `LaneReader.read`."""
        skipped = Skipped() if skipped is None else skipped
        kept: list[Document] = []
        for document in documents:
            if document.text.strip():
                kept.append(document)
            else:
                skipped.note(document.where, _BLANK)
        source = MemorySource(name, kept)
        return EvaluationText(name, tuple(reader.read(source, window, skipped) for reader in self._readers))


def read_texts(
    sources: Sequence[TextSource], readers: LaneReaders, window: int, skipped: Skipped | None = None
) -> list[EvaluationText]:
    """What `find_texts` has found, each named as it was put.

    Raises: InvalidRequestError for one without text, and what else `LaneReaders.read` raises.
    """
    skipped = Skipped() if skipped is None else skipped
    return [readers.read(source.spec, source.documents(skipped), window, skipped) for source in sources]


def find_texts(specs: Sequence[str], options: ReadingOptions | None = None) -> list[TextSource]:
    """Look texts up, as `find_source` takes them. A data set that isn't on this machine is fetched; nothing is read.

    Raises: InvalidRequestError for none, or one named twice; NotFoundError and what else `find_source` raises.
    """
    if not specs:
        raise InvalidRequestError("text: got none, expected at least one file, folder or data set")
    if ALL_TEXTS in specs:
        raise InvalidRequestError(
            f"text: got {ALL_TEXTS!r}, expected another name: it stands for all of them"
        )
    sources = [find_source(spec, options or ReadingOptions()) for spec in specs]
    refuse_taken_twice(sources)
    return sources


def _lane_text(corpus: TokenCorpus, sizes_V: Tensor, text_bytes: Tensor, num_end: int) -> LaneText:
    lengths = corpus.bounds.diff()
    document_N = torch.arange(corpus.num_documents).repeat_interleave(lengths)
    place_N = torch.arange(corpus.num_tokens) - corpus.bounds[document_N]
    is_text_N = (place_N >= corpus.uncounted[document_N]) & (place_N < lengths[document_N] - num_end)
    sizes_N = torch.where(is_text_N, sizes_V[corpus.token_ids_N.long()], 0.0)
    sums = torch.zeros_like(text_bytes).index_add(0, document_N, sizes_N)
    # What a tokenizer puts before a first word is not the text's.
    with_size = sizes_N.nonzero().squeeze(1)
    first_D = torch.zeros_like(lengths).scatter_reduce(
        0, document_N[with_size], with_size, "amin", include_self=False
    )
    surplus_D = (sums - text_bytes).clamp_min(0.0)
    surplus_D = torch.where(surplus_D <= sizes_N[first_D], surplus_D, 0.0)
    sizes_N = sizes_N.index_add(0, first_D, -surplus_D)
    sums = sums - surplus_D
    # What it normalises isn't either: its tokens share the text's bytes.
    told = sums > 0
    evenly_N = is_text_N.double() * (~told)[document_N]
    sizes_N, sums = sizes_N + evenly_N, sums.index_add(0, document_N, evenly_N)
    bytes_N = sizes_N * (text_bytes / sums.clamp_min(1.0))[document_N]
    counts_N = is_text_N & (place_N > 0)
    return LaneText(corpus, counts_N, torch.where(counts_N, bytes_N, 0.0), bytes_N.cumsum(0))
