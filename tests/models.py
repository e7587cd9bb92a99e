"""Tiny models with random weights and one byte-level tokenizer, for all tests: in memory or as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

EOS = "<eos>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, a few merges and an end-of-text token: any text is one sequence of ids and back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: index for index, char in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def tiny_llama(
    seed: int,
    *,
    width: int = 32,
    num_layers: int = 3,
    context: int = 256,
    vocab_size: int = 262,
    eos: int | None = 261,
) -> LlamaForCausalLM:
    """Random weights, large enough that logits differ clearly from token to token."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.15,
            bos_token_id=None,
            eos_token_id=eos,
            pad_token_id=None,
        )
        return LlamaForCausalLM(config).eval()


def reading(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind that `tokenizations` has, as models come with it."""
    from tokenizations import tokenizer_json

    tokenizer = Tokenizer.from_str(tokenizer_json(kind))
    end = next(
        name
        for name in ("<eos>", "</s>", "<|endoftext|>", "[SEP]")
        if tokenizer.token_to_id(name) is not None or name == "[SEP]"
    )
    names = {"eos_token": end} if tokenizer.token_to_id(end) is not None else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def reading_backend(
    name: str, kind: str, seed: int, *, cache_bytes: int = 2**23, block_tokens: int = 8, **shape: Any
) -> ShardBackend:
    """A shard in memory that reads text by a tokenizer of that kind."""
    tokenizer = reading(kind)
    model = tiny_llama(seed, vocab_size=len(tokenizer), eos=tokenizer.eos_token_id, **shape)
    config = ShardConfig(name=name, model=f"tiny-{seed}", cache_bytes=cache_bytes, block_tokens=block_tokens)
    return ShardBackend.from_model(model, tokenizer, config)


def tiny_backend(
    name: str,
    seed: int,
    *,
    cache_bytes: int = 2**22,
    block_tokens: int = 8,
    training_turn_rows: int = 512,
    **shape: Any,
) -> ShardBackend:
    """A shard in memory."""
    config = ShardConfig(
        name=name,
        model=f"tiny-{seed}",
        cache_bytes=cache_bytes,
        block_tokens=block_tokens,
        training_turn_rows=training_turn_rows,
    )
    return ShardBackend.from_model(tiny_llama(seed, **shape), byte_tokenizer(), config)


def save_tiny_model(folder: Path, seed: int, **shape: Any) -> Path:
    """The same in the Hugging Face layout on disk."""
    tiny_llama(seed, **shape).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
