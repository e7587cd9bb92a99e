"""Training of what decides who answers, on texts that braid and shards were measured on. Knows no requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from braid_fusion.deciding import DecisionClassifier, cheapest_answers, train_classifier
from braid_orchestrator.deciding import model_hashes
from braid_orchestrator.inprocess.measuring import measure_answerers
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
    with braid_errors():
        answers = cheapest_answers(measure_answerers(braided, texts), margin)
        hashes = model_hashes([backend.card for backend in braided.backends])
        return train_classifier(texts, answers, num_features=num_features, model_hashes=hashes)
