"""The two models that are measured: random weights, GPT-2's smallest size unless told otherwise, one tokenizer.

Every process makes its own from the seed, so nothing is written to disk and all hold the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

from braid_services.settling import settle
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

NAMES = ("left", "right")
SEEDS = (0, 1)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Of both models. The defaults are GPT-2's smallest: 124 million parameters."""

    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    vocab_size: int = 50257
    context: int = 1024


GPT2_SMALL = ModelSize()
QUICK = ModelSize(num_layers=6, width=64, num_heads=4, vocab_size=1000, context=512)


def make_model(seed: int, size: ModelSize) -> Any:
    """A GPT-2 of that size in eval mode, without gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(
            GPT2Config(
                n_layer=size.num_layers,
                n_embd=size.width,
                n_head=size.num_heads,
                vocab_size=size.vocab_size,
                n_positions=size.context,
                bos_token_id=size.vocab_size - 1,
                eos_token_id=size.vocab_size - 1,
            )
        )
    return model.eval().requires_grad_(False)


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """Byte-level BPE with as many merges of two bytes as the vocabulary has room for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(product(alphabet, alphabet), vocab_size - len(alphabet)))
    vocabulary = {
        token: index for index, token in enumerate((*alphabet, *(left + right for left, right in merges)))
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_backend(index: int, size: ModelSize) -> ShardBackend:
    """Shard ``index`` of the pair."""
    config = ShardConfig(name=NAMES[index], model=f"random-{SEEDS[index]}")
    return ShardBackend.from_model(make_model(SEEDS[index], size), make_tokenizer(size.vocab_size), config)


def make_prompt(num_tokens: int, vocab_size: int) -> tuple[int, ...]:
    """The same random text for all sides."""
    generator = torch.Generator().manual_seed(7)
    return tuple(torch.randint(vocab_size, (num_tokens,), generator=generator).tolist())


def settle_memory(num_threads: int) -> None:
    """Once everything is built: torch's threads, and nothing that lives on for the garbage collector to visit."""
    torch.set_num_threads(num_threads)
    settle()


def same_tokens(runs: Sequence[Sequence[int]]) -> bool:
    """Whether all of them are the same."""
    return all(list(run) == list(runs[0]) for run in runs)
