"""Documents as the anchor's token ids. Other shards read what these say, so nobody else tokenizes here.

A text is put between what the anchor's tokenizer puts before every text (a begin-of-text token, where it has one:
served prompts begin so too) and its end-of-text token, if it has one. A completion is tokenized as it continues the
prompt's own tokens, since those are what a served prompt has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from braid_fusion.alignment import SettlingTokenizer
from braid_orchestrator.engine.text import Encoded, TextCodec
from braid_orchestrator.training.data.corpus import CorpusBuilder, TokenCorpus
from braid_orchestrator.training.data.documents import Document, Skipped
from braid_orchestrator.training.data.long_text import encode_in_parts
from braid_orchestrator.training.data.sources import TextSource
from braid_rpc.errors import ContextLengthError, InvalidRequestError
from braid_services.fusion.translation import braid_errors

# What is being read, how far it is, and its size.
OnProgress = Callable[[str, int, int], None]

_CHARS_PER_REPORT = 1 << 20
_NO_TEXT = "texts without a token"


class DocumentEncoder:
    """The anchor's tokenizer, as training uses it.

    Args:
        tokenizer_json: as `ShardBackend.tokenizer_json` and `FetchTokenizer` give it.
        eos_token_ids: as a shard's card has them; the first ends documents.

    Raises: ConfigError for a tokenizer that can't be read.
    """

    def __init__(self, tokenizer_json: str, eos_token_ids: Sequence[int] = ()) -> None:
        self._codec = TextCodec(tokenizer_json)
        with braid_errors():
            self._going_on = SettlingTokenizer(tokenizer_json)
        self.leading_ids = self._going_on.leading_ids
        """Put before every document; never to be learned."""
        self.end_ids = tuple(eos_token_ids[:1])
        """Put behind every document; learned as its other tokens are."""

    def text_parts(self, text: str) -> Iterator[tuple[Sequence[int], int]]:
        """A text's own tokens, part by part, and how many characters those so far reach."""
        return encode_in_parts(self._encode, text)

    def example(self, prompt: str, completion: str, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of a prompt, leading ones included, and those of its completion, the end included.

        Raises: InvalidRequestError, naming ``where``, for a tokenizer with which a prompt's tokens and a
            completion's don't make up the text of both.
        """
        prompt_ids = self._encode(prompt).token_ids
        whole_ids = self._encode(prompt + completion).token_ids
        completion_ids = whole_ids[len(prompt_ids) :]
        if prompt_ids + completion_ids != whole_ids:
            # A token goes over the prompt's end. A served prompt ends there, and so must this one.
            completion_ids = tuple(self._going_on.encode(completion, at_start=False).ids)
            texts = [
                self._codec.decode(ids, keep_special_tokens=True)
                for ids in (whole_ids, prompt_ids + completion_ids)
            ]
            if texts[0] != texts[1]:
                raise InvalidRequestError(
                    f"{where}: the tokens of prompt and completion say {texts[1]!r}, expected {texts[0]!r}; "
                    "let the prompt end elsewhere, before a space for example"
                )
        return self.leading_ids + prompt_ids, completion_ids + self.end_ids

    def _encode(self, text: str) -> Encoded:
        return self._codec.encode(text, add_special_tokens=False)


def encode_source(
    source: TextSource,
    encoder: DocumentEncoder,
    *,
    max_example_tokens: int,
    skipped: Skipped | None = None,
    on_progress: OnProgress | None = None,
) -> TokenCorpus:
    """Read and tokenize a whole source. One document is in memory at a time.

    Args:
        max_example_tokens: which a prompt and its completion together may have; texts of any length are cut later.
        skipped: is told what is left out.
        on_progress: called about once per million characters, and at the end.

    Raises: InvalidRequestError for what can't be read, and if nothing is left; ContextLengthError.
    """
    skipped = Skipped() if skipped is None else skipped
    writer = _Writer(encoder, max_example_tokens, skipped)
    done, chars = 0, 0
    for document in source.documents(skipped):
        for num_chars in writer.write(document):
            # Nobody knows a part's size; that of its document is shared out evenly.
            done += round(document.size * num_chars / max(1, len(document.text)))
            chars += num_chars
            if chars >= _CHARS_PER_REPORT and on_progress is not None:
                on_progress(source.spec, min(done, source.size), source.size)
                chars = 0
    corpus = writer.builder.build()
    if corpus is None:
        reasons = f" ({'; '.join(skipped.lines())})" if skipped.counts else ""
        raise InvalidRequestError(f"{source.spec}: got no text{reasons}, expected at least one token")
    if on_progress is not None:
        on_progress(source.spec, source.size, source.size)
    return corpus


class _Writer:
    """Puts documents into a corpus, token by token."""

    def __init__(self, encoder: DocumentEncoder, max_example_tokens: int, skipped: Skipped) -> None:
        self.builder = CorpusBuilder()
        self._encoder = encoder
        self._max_example_tokens = max_example_tokens
        self._skipped = skipped

    def write(self, document: Document) -> Iterator[int]:
        """Yields how many more characters of it are done."""
        if document.prompt is not None:
            self._write_example(document, document.prompt)
            yield len(document.text)
            return
        leading, done = len(self._encoder.leading_ids), 0
        for token_ids, reached in self._encoder.text_parts(document.text):
            if token_ids and not self.builder.num_tokens_pending:
                self.builder.extend(self._encoder.leading_ids)
            self.builder.extend(token_ids)
            yield reached - done
            done = reached
        if not self.builder.num_tokens_pending:
            self._skipped.note(document.where, _NO_TEXT)
            return
        self.builder.extend(self._encoder.end_ids)
        self.builder.end_document(leading)

    def _write_example(self, document: Document, prompt: str) -> None:
        before, behind = self._encoder.example(prompt, document.text, document.where)
        num_tokens = len(before) + len(behind)
        if num_tokens > self._max_example_tokens:
            raise ContextLengthError(
                f"{document.where}: got {num_tokens} tokens of prompt and completion together, expected at most "
                f"{self._max_example_tokens}; a longer window takes it"
            )
        if not behind or num_tokens < 2:
            raise InvalidRequestError(
                f"{document.where}: got {len(before)} tokens of prompt and {len(behind)} of completion, expected a "
                "token to predict and one before it"
            )
        self.builder.extend(before)
        self.builder.extend(behind)
        self.builder.end_document(len(before), has_prompt=True)
