"""The demo's tokenizers. All are over bytes in the end, so any text can be encoded and decoded exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from braid_orchestrator.demo.recipe import TokenizerRecipe

EOS_TOKEN = "<|endoftext|>"


def train_tokenizer(recipe: TokenizerRecipe, kinds: Sequence[Sequence[str]], max_chars: int) -> Tokenizer:
    """A tokenizer over several kinds of text; token 0 ends a text.

    Args:
        kinds: the texts of each kind.
        max_chars: about so much is read, of each kind the same, spread evenly over its texts.
    """
    samples = [text for texts in kinds for text in _sample(texts, max_chars // len(kinds))]
    make = {"bpe": _byte_pairs, "pieces": _pieces, "bytes": _bytes}[recipe.kind]
    return make(samples, recipe.vocab_size)


def _byte_pairs(samples: Sequence[str], vocab_size: int) -> Tokenizer:
    """As GPT-2's: merges of bytes within words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(samples, trainer=trainer)
    return tokenizer


def _pieces(samples: Sequence[str], vocab_size: int) -> Tokenizer:
    """As SentencePiece's: words carry the space before them, the first word too; bytes for rare characters."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 257, limit_alphabet=120, special_tokens=[], show_progress=False
    )
    learned.train_from_iterator(samples, trainer=trainer)
    model = json.loads(learned.to_str())["model"]
    names = [EOS_TOKEN, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {name: index for index, name in enumerate(names)},
            [(left, right) for left, right in model["merges"]],
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([EOS_TOKEN])
    return tokenizer


def _bytes(samples: Sequence[str], vocab_size: int) -> Tokenizer:
    """Every byte is a token; nothing is learned."""
    names = [EOS_TOKEN, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS_TOKEN])
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
