"""How well a model or a braid in this process predicts texts, in bits per byte. Trains nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def measure_answerers(braided: BraidedLLM, texts: Sequence[str]) -> dict[Answerer, list[float]]:
    """Bits per byte of each text: the braid's under True, each shard's under its name.

    Every shard reads by its own tokenizer. Raises: as `evaluate`.
    """
    ways: dict[Answerer, tuple[bool, str | None]] = {True: (True, None)}
    ways |= {model.name: (False, model.name) for model in braided.models}
    return {
        answerer: [_checked(braided.score(ScoreRequest(text, *way)), text).bits_per_byte for text in texts]
        for answerer, way in ways.items()
    }


def _checked(result: ScoreResult, text: str) -> ScoreResult:
    if not result.num_bytes:
        raise InvalidRequestError(f"texts: got {text[:40]!r}, of one token, expected at least two")
    return result
