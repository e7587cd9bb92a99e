"""Training of what decides who answers, on texts that braid and shards were measured on. Knows no requests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from braid_fusion.deciding import Answerer, DecisionClassifier, cheapest_answers, train_classifier
from braid_orchestrator.deciding import model_hashes
from braid_orchestrator.inprocess.measuring import measure_answerers
from braid_rpc.errors import InvalidRequestError
from braid_services.fusion.translation import braid_errors

if TYPE_CHECKING:
    from braid_orchestrator.inprocess.braided import BraidedLLM


def train_decider(
    braided: BraidedLLM, texts: Sequence[str], *, margin: float = 0.02, num_features: int = 4096
) -> DecisionClassifier:
    """A classifier that has learned which shard predicts which texts best, and where the braid gains at least
    ``margin`` bits per byte over that one: below it, running all shards isn't worth it.

    It becomes the braid's own with ``braided.decide = classifier``, and a service's once `save_classifier` has
    written it where ``braiding.decide`` points. Raises: as `measure_answerers`.
    """
    answers, hashes = measured_answers(braided, texts, margin)
    with braid_errors():
        return train_classifier(texts, answers, num_features=num_features, model_hashes=hashes)


def measured_answers(
    braided: BraidedLLM,
    texts: Sequence[str],
    margin: float,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Answerer], dict[str, str]]:
    """Who should answer each text, by `measure_answerers`, and the hashes of the models that were measured."""
    hashes = model_hashes([backend.card for backend in braided.backends])
    with braid_errors():
        return cheapest_answers(measure_answerers(braided, texts, on_progress), margin), hashes


@dataclass(frozen=True, slots=True)
class DeciderReport:
    """How a classifier was made. ``answers`` counts who should have answered the texts: "the braid", "the anchor" or
    a shard. ``accuracy`` is on the texts held out, ``baseline`` what always naming the commonest answer of the others
    has there; None where none were held out."""

    num_texts: int
    num_held_out: int
    answers: dict[str, int]
    accuracy: float | None
    baseline: float | None


def check_decider(
    texts: Sequence[str],
    answers: Sequence[Answerer],
    *,
    held_out: float = 0.2,
    seed: int = 0,
    model_hashes: Mapping[str, str] | None = None,
) -> tuple[DecisionClassifier, DeciderReport]:
    """Train a classifier on all but a share of the texts, and tell how often it is right on those.

    Raises: InvalidRequestError for a share outside [0, 1), or that leaves no text to train on; DeciderError.
    """
    if not 0.0 <= held_out < 1.0:
        raise InvalidRequestError(f"held_out: got {held_out}, expected a share from 0 to below 1")
    num_held_out = math.ceil(held_out * len(texts))
    if texts and num_held_out >= len(texts):
        raise InvalidRequestError(f"texts: got {len(texts)}, expected more than the {num_held_out} held out")
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    kept, others = order[num_held_out:], order[:num_held_out]
    classifier = train_classifier(
        [texts[i] for i in kept], [answers[i] for i in kept], model_hashes=model_hashes
    )
    commonest = Counter(answers[i] for i in kept).most_common(1)[0][0]
    right = sum(classifier.decide(texts[i]) == answers[i] for i in others)
    alike = sum(answers[i] == commonest for i in others)
    names = {True: "the braid", False: "the anchor"}
    counts = Counter(one if isinstance(one, str) else names[one] for one in answers)
    return classifier, DeciderReport(
        num_texts=len(texts),
        num_held_out=num_held_out,
        answers=dict(counts.most_common()),
        accuracy=right / num_held_out if num_held_out else None,
        baseline=alike / num_held_out if num_held_out else None,
    )
