"""A softmax over those who can answer, from the n-grams of a prompt: trained in seconds, decides in microseconds.

Letters: B texts, N features, A answerers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid_fusion.deciding.features import features_of
from braid_fusion.deciding.predicates import Answerer
from braid_fusion.errors import DeciderError
from braid_fusion.initialisation import zero_linear

MAX_FEATURES = 2**20


class DecisionClassifier(nn.Module):
    """Logistic regression over hashed n-grams. `decide` is a predicate.

    ``margin``: the braid is chosen only where its probability is at least that much above the best shard's, since
    it costs more.
    """

    def __init__(
        self,
        answerers: Sequence[Answerer],
        num_features: int = 4096,
        *,
        margin: float = 0.0,
        model_hashes: Mapping[str, str] | None = None,
    ) -> None:
        """``answerers`` are different; False stands for the anchor, as do predicates' answers. ``model_hashes``:
        of the shards that it learned to decide between, by name; None: of any.

        Raises: DeciderError.
        """
        super().__init__()
        if len(answerers) < 1 or len({(type(one), one) for one in answerers}) != len(answerers):
            raise DeciderError(f"answerers: got {list(answerers)}, expected different ones, at least one")
        if not all(isinstance(one, bool | str) for one in answerers):
            raise DeciderError(f"answerers: got {list(answerers)}, expected true, false or shards' names")
        if isinstance(num_features, bool) or not isinstance(num_features, int):
            raise DeciderError(f"num_features: got {num_features!r}, expected a whole number")
        if not 1 <= num_features <= MAX_FEATURES:
            raise DeciderError(f"num_features: got {num_features}, expected from 1 to {MAX_FEATURES}")
        if not 0.0 <= margin <= 1.0:
            raise DeciderError(f"margin: got {margin}, expected from 0 to 1")
        self.answerers = tuple(answerers)
        self.num_features = num_features
        self.margin = margin
        self.model_hashes = dict(model_hashes or {})
        self.scores = zero_linear(num_features, len(answerers))

    def forward(self, features_BN: Tensor) -> Tensor:
        """(B, A) logits."""
        logits_BA: Tensor = self.scores(features_BN)
        return logits_BA

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """(B, A), in the order of ``answerers``."""
        features_BN = features_of(texts, self.num_features).to(self.scores.weight)
        probabilities_BA: Tensor = self.forward(features_BN).softmax(-1)
        return probabilities_BA

    def decide(self, text: str) -> Answerer:
        """Who is to answer."""
        (probabilities_A,) = self.probabilities([text])
        if True in self.answerers:
            braid = self.answerers.index(True)
            rest_A = probabilities_A.clone()
            rest_A[braid] = -torch.inf
            if probabilities_A[braid] - rest_A.max() < self.margin:
                probabilities_A = rest_A
        return self.answerers[int(probabilities_A.argmax())]


def train_classifier(
    texts: Sequence[str],
    answers: Sequence[Answerer],
    *,
    num_features: int = 4096,
    decay: float = 1e-4,
    max_steps: int = 200,
    margin: float = 0.0,
    model_hashes: Mapping[str, str] | None = None,
) -> DecisionClassifier:
    """Fit a classifier to who should have answered each text.

    The loss is convex and starts from zero, so nothing is drawn and the result depends on the data alone.

    Args:
        decay: pulls the weights to zero, ½ · decay · ‖W‖².
        margin, model_hashes: of `DecisionClassifier`.

    Raises: DeciderError for no texts, or another number of answers.
    """
    if not texts or len(texts) != len(answers):
        raise DeciderError(
            f"training: got {len(texts)} texts and {len(answers)} answers, expected as many of both, and any"
        )
    answerers = sorted(set(answers), key=lambda one: (isinstance(one, str), str(one)))
    classifier = DecisionClassifier(answerers, num_features, margin=margin, model_hashes=model_hashes)
    features_BN = features_of(texts, num_features)
    targets_B = torch.tensor([answerers.index(one) for one in answers])
    optimiser = torch.optim.LBFGS(
        classifier.parameters(), max_iter=max_steps, line_search_fn="strong_wolfe", tolerance_grad=1e-5
    )

    def closure() -> float:
        optimiser.zero_grad()
        loss = functional.cross_entropy(classifier.forward(features_BN), targets_B)
        loss = loss + 0.5 * decay * classifier.scores.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return classifier.eval()
