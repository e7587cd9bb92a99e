"""One tokenizer for both demo models: byte-level BPE, so any text can be encoded and decoded exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EOS_TOKEN = "<|endoftext|>"


def train_tokenizer(texts: Sequence[str], vocab_size: int, max_chars: int | None = None) -> Tokenizer:
    """Byte-level BPE over the texts; token 0 ends a text.

    Args:
        max_chars: take about that much, spread evenly over the texts; None: everything.
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
    tokenizer.train_from_iterator(_sample(texts, max_chars), trainer=trainer)
    return tokenizer


def _sample(texts: Sequence[str], max_chars: int | None) -> Iterator[str]:
    total = sum(map(len, texts))
    share = 1.0 if max_chars is None or total <= max_chars else max_chars / total
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
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(eos)
    return ids
