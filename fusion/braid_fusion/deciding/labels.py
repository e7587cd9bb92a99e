"""Who should have answered each text, from how well each did. Knows no models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from braid_fusion.deciding.predicates import Answerer
from braid_fusion.errors import DeciderError


def cheapest_answers(
    bits_per_byte: Mapping[Answerer, Sequence[float]], margin: float = 0.0
) -> list[Answerer]:
    """For each text the shard that predicts it best; or the braid, where it gains at least ``margin`` over that.

    Args:
        bits_per_byte: of each answerer, True for the braid, on the same texts.
        margin: in bits per byte: what running all shards has to bring to be worth it.

    Raises: DeciderError if there is no braid or no shard among them, or their numbers of texts differ.
    """
    shards = [answerer for answerer in bits_per_byte if answerer is not True]
    if True not in bits_per_byte or not shards:
        raise DeciderError(
            f"bits per byte: got those of {list(bits_per_byte)}, expected True's and a shard's"
        )
    counts = {len(figures) for figures in bits_per_byte.values()}
    if len(counts) != 1:
        raise DeciderError(f"bits per byte: got {sorted(counts)} figures, expected as many of each answerer")
    answers: list[Answerer] = []
    for index, braid in enumerate(bits_per_byte[True]):
        best = min(shards, key=lambda shard: bits_per_byte[shard][index])
        answers.append(True if bits_per_byte[best][index] - braid >= margin else best)
    return answers
