"""How well models predict a text, in bits per byte: shards alone, their braid, and what costs nothing to train.

Bits per byte compare across tokenizers, as bits per token do not.

Shapes: N windows, L tokens predicted in each, T = N · L packed positions, S shards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from braid_fusion.plan import PlanReadout
from braid_fusion.stack import FusionStack
from braid_orchestrator.inprocess.whole_text import run_whole
from braid_services.shard.backend import ShardBackend

# Natural log-probabilities (T,) of the targets (T,) at the positions of packed sequences (T,) of those lengths.
Scorer = Callable[[Tensor, Sequence[int], Tensor], Tensor]

BRAID, UNIFORM = "braid", "uniform mix"
ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text in windows: (N, L + 1) token ids, and how many bytes the predicted ones (all but the first of
    each window) stand for."""

    windows: Tensor
    num_bytes: int


def encode_windows(backend: ShardBackend, texts: Sequence[str], window: int) -> EncodedText:
    """Cut texts, joined, into windows of ``window`` predicted tokens. What is left at the end is dropped.

    Raises: ValueError if the texts are shorter than one window.
    """
    ids, _ = backend.tokenize("\n\n".join(texts))
    num_windows = (len(ids) - 1) // window
    if num_windows < 1:
        raise ValueError(f"texts: got {len(ids)} tokens, expected at least {window + 1}")
    kept = torch.tensor(ids[: num_windows * window + 1])
    windows = torch.stack([kept[i * window : (i + 1) * window + 1] for i in range(num_windows)])
    num_bytes = len(backend.detokenize(kept[1:].tolist(), keep_special_tokens=True).encode())
    return EncodedText(windows, num_bytes)


@torch.inference_mode()
def target_logprobs(scorer: Scorer, text: EncodedText) -> Tensor:
    """(T,) natural log-probabilities that a scorer gives to what comes, at each position of the text."""
    length = text.windows.shape[1] - 1
    parts = [
        scorer(batch[:, :-1].reshape(-1), [length] * batch.shape[0], batch[:, 1:].reshape(-1))
        for batch in text.windows.tensor_split(max(1, text.windows.shape[0] * length // ROWS_AT_ONCE))
    ]
    return torch.cat(parts)


def bits_per_byte(logprobs_T: Tensor, num_bytes: int) -> float:
    """−log₂ of the text's probability, per byte of it."""
    return -float(logprobs_T.double().sum()) / math.log(2) / num_bytes


def shard_scorer(backend: ShardBackend) -> Scorer:
    """A shard alone."""

    def score(token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
        _, logits_TV = backend.forward(token_ids_T, lengths).finish()
        return -functional.cross_entropy(logits_TV.float(), targets_T, reduction="none")

    return score


def braid_scorer(backends: Sequence[ShardBackend], stack: FusionStack) -> Scorer:
    """Shards, fusion points and readout together."""

    def score(token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
        scores_TV = run_whole(backends, stack, token_ids_T, lengths).scores
        return -functional.cross_entropy(scores_TV.float(), targets_T, reduction="none")

    return score


def compare_braid(
    backends: Sequence[ShardBackend],
    stack: FusionStack,
    texts: Mapping[str, Sequence[str]],
    window: int,
    on_progress: Callable[[float], None] | None = None,
    *,
    threads: int = 1,
) -> dict[str, dict[str, float]]:
    """Bits per byte of each shard alone, of the plain average of their probabilities, and of the braid.

    Args:
        texts: each in parts, which are joined; everybody reads them by a tokenizer of its own.
        window: tokens that are predicted in a row, of whatever tokenizer.
        threads: that many texts at a time.
        on_progress: gets the fraction done after every part.

    Returns: ``result[who][text]``; the shards by their names, then `UNIFORM` and `BRAID`.
    Raises: ValueError for texts shorter than a window.
    """
    plan = stack.plan
    anchor = backends[plan.anchor]
    readers = {backend.card.name: (backend, shard_scorer(backend)) for backend in backends}
    if plan.num_lanes > 1:
        average = FusionStack(replace(plan, points=(), readout=PlanReadout("mixture")))
        readers[UNIFORM] = (anchor, braid_scorer(backends, average))
    readers[BRAID] = (anchor, braid_scorer(backends, stack))
    num_parts, num_done = len(texts) * len(readers), itertools.count(1)

    def score(parts: Sequence[str]) -> dict[str, float]:
        logprobs: dict[str, Tensor] = {}
        figures: dict[str, float] = {}
        for who, (reader, scorer) in readers.items():
            text = encode_windows(reader, parts, window)
            logprobs[who] = target_logprobs(scorer, text)
            figures[who] = bits_per_byte(logprobs[who], text.num_bytes)
            if on_progress is not None:
                on_progress(next(num_done) / num_parts)
        if plan.num_lanes == 1:
            alone = torch.stack([logprobs[backend.card.name] for backend in backends])
            average_T = alone.logsumexp(0) - math.log(len(backends))
            figures[UNIFORM] = bits_per_byte(average_T, encode_windows(anchor, parts, window).num_bytes)
        return figures

    with ThreadPoolExecutor(threads, thread_name_prefix="evaluation") as pool:
        rows = dict(zip(texts, pool.map(score, texts.values()), strict=True))
    names = [*(backend.card.name for backend in backends), UNIFORM, BRAID]
    return {who: {text: row[who] for text, row in rows.items()} for who in names}
