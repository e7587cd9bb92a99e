"""From what a user names to the corpora of a run: what is trained on, and what is held out. Makes no batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from braid_orchestrator.training.data.corpus import TokenCorpus
from braid_orchestrator.training.data.documents import Skipped
from braid_orchestrator.training.data.encoding import DocumentEncoder, OnProgress, encode_source
from braid_orchestrator.training.data.held_out import split_corpus
from braid_orchestrator.training.data.origins import in_common
from braid_orchestrator.training.data.sources import (
    ReadingOptions,
    TextSource,
    find_source,
    refuse_taken_twice,
)
from braid_rpc.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class TrainingTexts:
    """``held_out`` None: nothing is. ``skipped``: sentences about what was left out."""

    training: TokenCorpus
    held_out: TokenCorpus | None
    skipped: tuple[str, ...] = ()


def find_texts(
    texts: Sequence[str], held_out: Sequence[str] = (), options: ReadingOptions | None = None
) -> tuple[list[TextSource], list[TextSource]]:
    """Look up what is trained on and what is held out, as `find_source` takes them, and read nothing.

    Raises: InvalidRequestError, also for a text that is named twice; NotFoundError, UnavailableError, ConfigError.
    """
    if not texts:
        raise InvalidRequestError("text: got none, expected at least one file, folder or data set")
    options = options or ReadingOptions()
    sources, held_out_sources = (
        [find_source(spec, options) for spec in specs] for specs in (texts, held_out)
    )
    refuse_taken_twice(sources)
    _refuse_common_texts(sources, held_out_sources)
    return sources, held_out_sources


def load_texts(
    texts: Sequence[str],
    encoder: DocumentEncoder,
    *,
    window: int,
    held_out: Sequence[str] = (),
    held_out_share: float = 0.0,
    options: ReadingOptions | None = None,
    on_progress: OnProgress | None = None,
) -> TrainingTexts:
    """Read and tokenize everything. All names are looked up before any text is read.

    Args:
        texts, held_out: as `find_source` takes them.
        window: what prompts with their completions must fit into.
        held_out_share: of every text, kept from training (see `split_corpus`); instead of ``held_out``.

    Raises: InvalidRequestError, NotFoundError, UnavailableError, ConfigError, ContextLengthError.
    """
    if held_out and held_out_share:
        raise InvalidRequestError(
            f"held out: got both texts ({held_out[0]}) and a share of {held_out_share}, expected one of them"
        )
    sources, held_out_sources = find_texts(texts, held_out, options)
    skipped: list[str] = []

    def encode(source: TextSource) -> TokenCorpus:
        left_out = Skipped()
        corpus = encode_source(
            source, encoder, max_example_tokens=window + 1, skipped=left_out, on_progress=on_progress
        )
        skipped.extend(left_out.lines())
        return corpus

    training = [encode(source) for source in sources]
    kept = [encode(source) for source in held_out_sources]
    if held_out_share:
        # Of each by itself: the end of all of them would be the last one's.
        pairs = [
            split_corpus(corpus, held_out_share, source.spec)
            for corpus, source in zip(training, sources, strict=True)
        ]
        training, kept = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return TrainingTexts(
        TokenCorpus.joined(training), TokenCorpus.joined(kept) if kept else None, tuple(skipped)
    )


def _refuse_common_texts(texts: Sequence[TextSource], held_out: Sequence[TextSource]) -> None:
    trained, kept = ((one for source in many for one in source.origins) for many in (texts, held_out))
    common = in_common(trained, kept)
    if common is not None:
        raise InvalidRequestError(
            f"{common}: got a text that is to be trained on and held out, expected one of them"
        )
