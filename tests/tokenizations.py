"""Tokenizers of all the kinds that matter for reading one text in several ways, trained on a few lines."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SHARED = Path(__file__).parents[2] / "shared"

TEXT = """Once upon a time, there was a little girl named Lily. She'd like to play; they're friends, aren't they?
def __init__(self, name: str = "x", *args) -> None:\n    self.name = name  # 12345 + 678 = 13023\n\n\treturn None
The quick brown fox jumps over the lazy dog. It's 3.14159, isn't it? Größe, naïve café, Übermut - ¿qué?
Привет, мир! שלום עולם. مرحبا بالعالم 你好,世界。 こんにちは 안녕하세요 🙂👍🏽👩‍👩‍👧 e\u0301 a\u0323\u0301
"""
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def _byte_bpe(size: int = 380, **pre: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **pre)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    return _train(tokenizer, trainer)


def _bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def _prefix_byte_bpe() -> Tokenizer:
    tokenizer = _byte_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def _normalising_bpe() -> Tokenizer:
    tokenizer = _byte_bpe()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return tokenizer


def _cl100k() -> Tokenizer:
    tokenizer = _byte_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _with_added_tokens() -> Tokenizer:
    tokenizer = _byte_bpe()
    tokenizer.add_tokens(["\n\n\n", "return None", AddedToken("-->", normalized=False)])
    return tokenizer


def _llama(size: int = 420) -> Tokenizer:
    """As SentencePiece models come: no pre-tokenizer, a space before the text, bytes for what has no piece."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        limit_alphabet=60,
        special_tokens=["<unk>", "<s>", "</s>", *pieces],
        show_progress=False,
    )
    trained = _train(tokenizer, trainer)
    trained.pre_tokenizer = None
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", trained.token_to_id("<s>"))]
    )
    # Only these three are special; the bytes are ordinary pieces.
    import json

    raw = json.loads(trained.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < 3]
    return Tokenizer.from_str(json.dumps(raw))


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<eos>"], unk_token="<unk>", show_progress=False
    )
    return _train(tokenizer, trainer)


def _words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=200, special_tokens=["<unk>", "<eos>"], show_progress=False
    )
    return _train(tokenizer, trainer)


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    trained = _train(tokenizer, trainer)
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, trained.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return trained


GPT2_FOLDER = SHARED / "data" / "tokenizers" / "gpt2"


def gpt2_json() -> str:
    """GPT-2's own tokenizer, from its published files."""
    tokenizer = Tokenizer(
        models.BPE.from_file(str(GPT2_FOLDER / "vocab.json"), str(GPT2_FOLDER / "merges.txt"))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer.to_str()


_MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte bpe": _byte_bpe,
    "byte bpe, space first": _prefix_byte_bpe,
    "byte bpe, nfc and lowercase": _normalising_bpe,
    "byte bpe, cl100k": _cl100k,
    "byte bpe, added tokens": _with_added_tokens,
    "bytes": _bytes,
    "llama": _llama,
    "unigram": _unigram,
    "words": _words,
    "word piece": _word_piece,
}
KINDS = tuple(_MAKERS)


@cache
def tokenizer_json(kind: str) -> str:
    """The same each time: training is deterministic."""
    return gpt2_json() if kind == "gpt2" else _MAKERS[kind]().to_str()
