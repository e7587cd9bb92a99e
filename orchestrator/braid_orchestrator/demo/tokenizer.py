"""One tokenizer for both demo models: byte-level BPE, so any text can be encoded and decoded exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EOS_TOKEN = "<|endoftext|>"


def train_tokenizer(kinds: Sequence[Sequence[str]], vocab_size: int, max_chars: int) -> Tokenizer:
    """Byte-level BPE over several kinds of text; token 0 ends a text.

    Args:
        kinds: the texts of each kind.
        max_chars: about so much is read, of each kind the same, spread evenly over its texts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    samples = (text for texts in kinds for text in _sample(texts, max_chars // len(kinds)))
    tokenizer.train_from_iterator(samples, trainer=trainer)
    return tokenizer


def _sample(texts: Sequence[str], max_chars: int) -> Iterator[str]:
    """The beginning of every text, the same share of each."""
    share = min(1.0, max_chars / max(1, sum(map(len, texts))))
    for text in texts:
        yield text[: max(1, int(len(text) * share))]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write it in the Hugging Face layout, next to a model's weights."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        bos_token=EOS_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=context_length,
    ).save_pretrained(folder)


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> list[int]:
    """All texts one after the other, each followed by the end-of-text token."""
    eos = tokenizer.token_to_id(EOS_TOKEN)
    if eos is None:
        raise ValueError(f"tokenizer: has no token {EOS_TOKEN!r}, expected one that `train_tokenizer` made")
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(eos)
    return ids
