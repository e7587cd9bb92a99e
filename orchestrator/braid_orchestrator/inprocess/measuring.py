"""How well a model or a braid in this process predicts texts, in bits per byte. Trains nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from braid_fusion.deciding import Answerer
from braid_orchestrator.engine.requests import ScoreRequest, ScoreResult
from braid_rpc.errors import InvalidRequestError

if TYPE_CHECKING:
    from braid_orchestrator.inprocess.braided import BraidedLLM
    from braid_orchestrator.inprocess.model_wrapper import ModelWrapper


def evaluate(model: BraidedLLM | ModelWrapper, texts: Sequence[str]) -> float:
    """Bits per byte over all texts together; less is better. The braid's, of a `BraidedLLM`.

    A text's first token is given, so its bytes don't count. Figures of models with different tokenizers compare.
    Raises: InvalidRequestError for no text, or one of less than two tokens; ContextLengthError.
    """
    results = [_checked(model.score(ScoreRequest(text)), text) for text in texts]
    if not results:
        raise InvalidRequestError("texts: got none, expected at least one")
    total = math.fsum(logprob for result in results for logprob in result.logprobs)
    return -total / math.log(2) / sum(result.num_bytes for result in results)


def measure_answerers(
    braided: BraidedLLM,
    texts: Sequence[str],
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[Answerer, list[float]]:
    """Bits per byte of each text: the braid's under True, each shard's under its name.

    Every shard reads by its own tokenizer. ``on_progress`` is told who was measured, and how many of all
    measurements are done. Raises: as `evaluate`.
    """
    ways: dict[Answerer, tuple[bool, str | None]] = {True: (True, None)}
    ways |= {model.name: (False, model.name) for model in braided.models}
    figures: dict[Answerer, list[float]] = {answerer: [] for answerer in ways}
    done = 0
    for answerer, (use_braiding, shard) in ways.items():
        for text in texts:
            result = _checked(braided.score(ScoreRequest(text, use_braiding, shard)), text)
            figures[answerer].append(result.bits_per_byte)
            done += 1
            if on_progress is not None:
                on_progress(shard or "the braid", done, len(ways) * len(texts))
    return figures


def _checked(result: ScoreResult, text: str) -> ScoreResult:
    if not result.num_bytes:
        raise InvalidRequestError(f"texts: got {text[:40]!r}, of one token, expected at least two")
    return result
