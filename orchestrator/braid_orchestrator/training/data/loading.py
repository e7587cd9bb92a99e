"""From what a user names to the corpora of a run: what is trained on, and what is held out. Makes no batches.

In two steps, so that a name that means nothing is refused before models are loaded: `find_texts` looks texts up, and
`load_texts` reads them, by a tokenizer.
"""

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
class FoundTexts:
    """What is there, none of it read. Of each of ``training``, a share of ``held_out_share`` is to be held out;
    ``held_out`` are texts of their own."""

    training: tuple[TextSource, ...]
    held_out: tuple[TextSource, ...] = ()
    held_out_share: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingTexts:
    """``held_out`` None: nothing is. ``skipped``: sentences about what was left out."""

    training: TokenCorpus
    held_out: TokenCorpus | None
    skipped: tuple[str, ...] = ()


def find_texts(
    texts: Sequence[str],
    *,
    held_out: Sequence[str] = (),
    held_out_share: float = 0.0,
    options: ReadingOptions | None = None,
) -> FoundTexts:
    """Look up everything. A data set that isn't on this machine is fetched; nothing else is read.

    Args:
        texts, held_out: as `find_source` takes them.
        held_out_share: of every text, kept from training (see `split_corpus`); instead of ``held_out``.

    Raises: InvalidRequestError, also for a text that is named twice; NotFoundError, UnavailableError, ConfigError.
    """
    if not texts:
        raise InvalidRequestError("text: got none, expected at least one file, folder or data set")
    if held_out and held_out_share:
        raise InvalidRequestError(
            f"held out: got both texts ({held_out[0]}) and a share of {held_out_share}, expected one of them"
        )
    options = options or ReadingOptions()
    found = FoundTexts(
        tuple(find_source(spec, options) for spec in texts),
        tuple(find_source(spec, options) for spec in held_out),
        held_out_share,
    )
    refuse_taken_twice(found.training)
    _refuse_common_texts(found.training, found.held_out)
    if held_out_share:
        _refuse_common_rows(found.training)
    return found


def load_texts(
    found: FoundTexts, encoder: DocumentEncoder, *, window: int, on_progress: OnProgress | None = None
) -> TrainingTexts:
    """Read and tokenize everything that was found.

    Args:
        window: what prompts with their completions must fit into.

    Raises: InvalidRequestError, ContextLengthError.
    """
    skipped: list[str] = []

    def encode(source: TextSource) -> TokenCorpus:
        left_out = Skipped()
        corpus = encode_source(
            source, encoder, max_example_tokens=window + 1, skipped=left_out, on_progress=on_progress
        )
        skipped.extend(left_out.lines())
        return corpus

    training = [encode(source) for source in found.training]
    kept = [encode(source) for source in found.held_out]
    if found.held_out_share:
        # Of each by itself: the end of all of them would be the last one's.
        pairs = [
            split_corpus(corpus, found.held_out_share, source.spec)
            for corpus, source in zip(training, found.training, strict=True)
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


def _refuse_common_rows(texts: Sequence[TextSource]) -> None:
    """Each text has its share held out by itself, so what one holds out of a row another would train on."""
    for number, text in enumerate(texts):
        before = [origin for one in texts[:number] for origin in one.origins]
        common = in_common(text.origins, before)
        if common is not None:
            raise InvalidRequestError(
                f"{text.spec}: got rows of {common} of which another field is a text, too, and a share to hold out "
                "of each; expected one of the fields, or texts of their own to hold out"
            )
