"""A text as counts of hashed n-grams of its bytes and words: the same on every machine, without a vocabulary.

Letters: N features, L bytes of a text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

# What comes later tells little that is new, and a decision must not take longer than a step.
MAX_BYTES = 8192
_ORDERS = (1, 2, 3, 4)
_WORDS = re.compile(r"\w+|[^\w\s]")
# A multiplicative hash: the golden ratio's bits, odd, below 2**62 so that int64 products only ever wrap.
_MULTIPLIER = 0x1E3779B97F4A7C15


def text_features(text: str, num_features: int) -> Tensor:
    """(N,) float32 of unit length, zeros for an empty text: log(1 + count) of the n-grams of each bucket.

    N-grams of one to four bytes, words and pairs of words, of the text's first `MAX_BYTES` bytes.
    """
    data = text.encode("utf-8", "replace")[:MAX_BYTES]
    bytes_L = torch.tensor(list(data), dtype=torch.int64)
    buckets = [_byte_grams(bytes_L, order, num_features) for order in _ORDERS]
    words = _WORDS.findall(data.decode("utf-8", "ignore").lower())
    grams = [*words, *(" ".join(pair) for pair in pairwise(words))]
    hashes = [zlib.crc32(gram.encode()) % num_features for gram in grams]
    buckets.append(torch.tensor(hashes, dtype=torch.int64))
    counts_N = torch.bincount(torch.cat(buckets), minlength=num_features).float().log1p()
    features_N: Tensor = counts_N / counts_N.norm().clamp_min(1e-12)
    return features_N


def features_of(texts: Sequence[str], num_features: int) -> Tensor:
    """(B, N): `text_features` of each text."""
    return torch.stack([text_features(text, num_features) for text in texts])


def _byte_grams(bytes_L: Tensor, order: int, num_features: int) -> Tensor:
    """The bucket of every n-gram of ``order`` bytes: (L − order + 1,), none for a shorter text."""
    if bytes_L.shape[0] < order:
        return bytes_L.new_zeros(0)
    grams = bytes_L.unfold(0, order, 1)
    packed = (grams << (8 * torch.arange(order))).sum(-1) + (order << 40)
    return ((packed * _MULTIPLIER) >> 20).remainder(num_features)
