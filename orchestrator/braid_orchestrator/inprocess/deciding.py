"""Training of what decides who answers, on texts that braid and shards were measured on. Knows no requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from braid_fusion.deciding import Answerer, DecisionClassifier, cheapest_answers, train_classifier
from braid_orchestrator.engine.requests import ScoreRequest
from braid_rpc.errors import InvalidRequestError
from braid_services.fusion.translation import braid_errors

if TYPE_CHECKING:
    from braid_orchestrator.inprocess.braided import BraidedLLM


def measure_answerers(braided: BraidedLLM, texts: Sequence[str]) -> dict[Answerer, list[float]]:
    """Bits per byte of each text: the braid's under True, each shard's under its name.

    Every shard reads by its own tokenizer; its first token is given, so its bytes don't count.
    Raises: InvalidRequestError for a text of less than two tokens; ContextLengthError.
    """
    measured: dict[Answerer, list[float]] = {True: []}
    for text in texts:
        measured[True].append(_bits_per_byte(braided, text, True, None))
        for model in braided.models:
            figures = measured.setdefault(model.name, [])
            figures.append(_bits_per_byte(braided, text, False, model.name))
    return measured


def train_decider(
    braided: BraidedLLM, texts: Sequence[str], *, margin: float = 0.02, num_features: int = 4096
) -> DecisionClassifier:
    """A classifier that has learned which shard predicts which texts best, and where the braid gains at least
    ``margin`` bits per byte over that one: below it, running all shards isn't worth it.

    It becomes the braid's own with ``braided.decide = classifier``, and a service's once `save_classifier` has
    written it where ``braiding.decide`` points. Raises: as `measure_answerers`.
    """
    with braid_errors():
        answers = cheapest_answers(measure_answerers(braided, texts), margin)
        return train_classifier(texts, answers, num_features=num_features)


def _bits_per_byte(braided: BraidedLLM, text: str, use_braiding: bool, shard: str | None) -> float:
    result = braided.score(ScoreRequest(text, use_braiding, shard))
    if not result.num_bytes:
        raise InvalidRequestError(f"texts: got {text[:40]!r}, of one token, expected at least two")
    return result.bits_per_byte
