"""Documents as the anchor's tokens: what is put around them, and what of them is to be learned."""

from __future__ import annotations

import pytest
from corpora import byte_encoder, texts_given
from hypothesis import given, settings
from hypothesis import strategies as st
from models import byte_tokenizer, tiny_backend
from tokenizations import KINDS, TEXT, tokenizer_json
from tokenizers import Tokenizer

from braid_orchestrator.engine.text import TextCodec
from braid_orchestrator.training.data import (
    Document,
    DocumentEncoder,
    MemorySource,
    TokenCorpus,
    encode_source,
)
from braid_orchestrator.training.data import encoding as encoding_module
from braid_orchestrator.training.data.documents import Skipped
from braid_orchestrator.training.data.sources import TextSource
from braid_rpc.errors import ConfigError, ContextLengthError, InvalidRequestError

ENCODERS = {kind: DocumentEncoder(tokenizer_json(kind)) for kind in KINDS}


def encoded(source: TextSource, encoder: DocumentEncoder | None = None, **options: object) -> TokenCorpus:
    given_options = {"max_example_tokens": 100} | options
    return encode_source(source, encoder or byte_encoder(), **given_options)  # type: ignore[arg-type]


def examples(*pairs: tuple[str, str]) -> MemorySource:
    documents = [
        Document(f"examples.jsonl:{i}", text, prompt, 1) for i, (prompt, text) in enumerate(pairs, 1)
    ]
    return MemorySource("examples.jsonl", documents)


def test_texts_stand_one_after_the_other_each_with_its_end() -> None:
    texts = ["The quick brown fox.", "über\n", "x"]
    backend = tiny_backend("code", 1)
    corpus = encoded(
        texts_given(*texts), DocumentEncoder(backend.tokenizer_json(), backend.card.eos_token_ids)
    )
    end = backend.card.eos_token_ids[0]
    expected = [token_id for text in texts for token_id in (*backend.tokenize(text)[0], end)]
    assert corpus.token_ids_N.tolist() == expected
    assert corpus.num_documents == 3 and corpus.uncounted.tolist() == [0, 0, 0] and not corpus.has_prompts


def test_what_the_tokenizer_puts_before_a_text_is_read_and_not_learned() -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json("llama"))
    begin, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    corpus = encoded(texts_given("the dog", "a fox"), DocumentEncoder(tokenizer_json("llama"), [end, 0]))
    served = TextCodec(tokenizer_json("llama")).encode("the dog").token_ids
    first = corpus.token_ids_N[: corpus.bounds[1]].tolist()
    assert first == [*served, end] and first[0] == begin
    assert corpus.uncounted.tolist() == [1, 1]


def test_a_tokenizer_without_an_end_of_text_adds_none() -> None:
    corpus = encoded(texts_given("ab", "c"), ENCODERS["bytes"])
    assert corpus.bounds.tolist() == [0, 2, 3]


def test_only_a_completion_and_its_end_are_learned() -> None:
    corpus = encoded(examples(("ab+cd=", "17"), ("", "xy")))
    assert corpus.has_prompts
    assert corpus.bounds.tolist() == [0, 9, 12] and corpus.uncounted.tolist() == [6, 0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(cut=st.integers(0, len(TEXT)), length=st.integers(1, 40))
def test_a_completion_continues_the_tokens_of_the_prompt(kind: str, cut: int, length: int) -> None:
    """A served prompt is tokenized alone, so in training its tokens are the same."""
    encoder, codec = ENCODERS[kind], TextCodec(tokenizer_json(kind))
    prompt, completion = TEXT[max(0, cut - 30) : cut], TEXT[cut : cut + length]
    try:
        before, behind = encoder.example(prompt, completion, "here")
    except InvalidRequestError as error:
        assert "here: the tokens of prompt and completion say" in error.message
        assert kind not in ("bytes", "byte bpe", "byte bpe, cl100k", "byte bpe, added tokens")
        return
    alone = codec.encode(prompt, add_special_tokens=False).token_ids
    assert before == (*encoder.leading_ids, *alone)
    together = codec.encode(prompt + completion, add_special_tokens=False).token_ids
    assert codec.decode([*alone, *behind], keep_special_tokens=True) == codec.decode(
        together, keep_special_tokens=True
    )


def test_a_completion_after_a_space_is_not_joined_with_it() -> None:
    codec = TextCodec(byte_tokenizer().backend_tokenizer.to_str())
    before, behind = byte_encoder().example("over ", "the", "here")
    joined = codec.encode("over the", add_special_tokens=False).token_ids
    assert len(joined) == len(before + behind[:-1]) - 1  # " the" is one token
    assert codec.decode(before) == "over " and codec.decode(behind) == "the"


def test_texts_without_a_token_are_left_out_and_counted() -> None:
    skipped = Skipped()
    corpus = encoded(texts_given("", "a", ""), skipped=skipped)
    assert corpus.num_documents == 1
    assert skipped.lines() == ("2 left out: texts without a token; the first is text 0",)


def test_a_source_without_text_is_refused() -> None:
    with pytest.raises(
        InvalidRequestError,
        match=r"given: got no text \(1 left out: texts without a token.*\), expected at least one token",
    ):
        encoded(texts_given(""))


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        (
            ("a" * 50, "b" * 50),
            ContextLengthError,
            r"examples.jsonl:1: got 101 tokens .* expected at most 100",
        ),
        (("", ""), InvalidRequestError, r"examples.jsonl:1: got 0 tokens of prompt and 1 of completion"),
    ],
)
def test_examples_that_do_not_fit_or_teach_are_refused(
    pair: tuple[str, str], error: type[InvalidRequestError], message: str
) -> None:
    with pytest.raises(error, match=message):
        encoded(examples(pair))


def test_a_completion_without_any_token_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"got 2 tokens of prompt and 0 of completion"):
        encoded(examples(("ab", "")), ENCODERS["bytes"])


def test_progress_is_told_of_long_texts_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "_CHARS_PER_REPORT", 1 << 17)
    told: list[tuple[str, int, int]] = []
    text = "lorem ipsum " * 40_000
    corpus = encoded(
        texts_given(text, "b"), ENCODERS["bytes"], on_progress=lambda *values: told.append(values)
    )
    assert corpus.num_tokens == len(text) + 1
    size = len(text) + 1
    assert len(told) >= 3 and told[-1] == ("given", size, size)
    done = [value for _, value, _ in told]
    assert done == sorted(done) and 0 < done[0] < 0.6 * size


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokenizer: not readable"):
        DocumentEncoder("{}")
