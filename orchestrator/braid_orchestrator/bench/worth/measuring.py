"""Texts as the models of a contest read them, and how well contestants predict them: sums by windows.

Knows no contestant. Where tokenizers differ, each text is there in the tokens of each, and everybody is booked to
the windows of the first, which is the anchor's.

Shapes: T packed rows, S shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from braid_fusion.stack import FusionStack
from braid_orchestrator.bench.worth.models import Scorer
from braid_orchestrator.bench.worth.stretches import mixed_by_stretches
from braid_orchestrator.evaluation import (
    ORACLE,
    POSTERIOR,
    UNIFORM,
    Cut,
    LaneReader,
    Predictor,
    UnitSums,
    measure_scores,
    sum_by_windows,
    token_logprobs,
)
from braid_orchestrator.evaluation.measuring import Score
from braid_orchestrator.evaluation.mixes import oracle_logprobs, posterior_log_weights, uniform_log_weights
from braid_orchestrator.evaluation.scoring import Scores, score_alone
from braid_orchestrator.evaluation.texts import LaneText
from braid_orchestrator.training.braid_pass import run_to_ends
from braid_orchestrator.training.data import Document, MemorySource
from braid_orchestrator.training.ports import TrainingShard

VALIDATION, TEST = "validation", "test"
FORGETTINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)

Figures = dict[str, dict[str, float]]  # bits per byte by side and text
Sums = dict[str, dict[str, UnitSums]]  # by side and text


class MeasuredTexts:
    """Texts of both sides by their names, as tokenizers read them.

    Args:
        readers: one per lane of the contest's plan, the anchor's first.
        window: in the anchor's tokens; in others, of those that make as much of the text.

    Raises: InvalidRequestError for texts without two tokens.
    """

    def __init__(
        self,
        readers: Sequence[LaneReader],
        validation: Mapping[str, Sequence[Document]],
        test: Mapping[str, Sequence[Document]],
        window: int,
    ) -> None:
        self._window = window
        self._lanes = {
            side: {
                name: [reader.read(MemorySource(name, documents), window) for reader in readers]
                for name, documents in by_name.items()
            }
            for side, by_name in ((VALIDATION, validation), (TEST, test))
        }

    def measure(self, who: str, scorer: Scorer, lane: int = 0) -> Sums:
        """Of a contestant, on all texts of both sides. ``lane``: whose tokens it reads."""
        return {side: self._measure(who, scorer, side, lane) for side in self._lanes}

    def validate(self, scorer: Scorer, lane: int = 0) -> dict[str, float]:
        """What training chooses its best weights by: the mean over the validation texts."""
        return {"loss": _validation_mean({VALIDATION: self._measure("contestant", scorer, VALIDATION, lane)})}

    @torch.no_grad()
    def measure_mixes(
        self, shards: Sequence[TrainingShard], outputs: FusionStack
    ) -> tuple[dict[str, Sums], float]:
        """The models alone, each on tokens of its own, and the mixes that need no training, by their rows' names.

        Args:
            shards: one per shard of the plan of ``outputs``, in its order.
            outputs: without points, and a readout that asks all shards.

        Returns: the sums, and the posterior's forgetting that is best on validation text.
        """
        posteriors = {Predictor("baseline", f"{one:g}"): one for one in FORGETTINGS}
        lane_of = outputs.plan.lane_of

        def score(ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Mapping[Predictor, Scores]:
            own_TS = run_to_ends(shards, outputs, ids_T, lengths, targets_T).target_logprobs_RA
            weights = {who: posterior_log_weights(own_TS, lengths, one) for who, one in posteriors.items()}
            weights[UNIFORM] = uniform_log_weights(*own_TS.shape)
            return {
                **{
                    Predictor("shard", shard.name): Scores(own_T)
                    for shard, own_T, lane in zip(shards, own_TS.unbind(1), lane_of, strict=True)
                    if lane == 0
                },
                **{who: Scores((own_TS + one_TS).logsumexp(-1)) for who, one_TS in weights.items()},
                ORACLE: Scores(oracle_logprobs(own_TS)),
            }

        sums: dict[Predictor, Sums] = {}
        for side, texts in self._lanes.items():
            for name, lanes in texts.items():
                for who, one in measure_scores(score, lanes[0], self._cut(lanes, 0)).items():
                    sums.setdefault(who, {}).setdefault(side, {})[name] = one
        best = min(posteriors, key=lambda who: _validation_mean(sums[who]))
        rows = {who.name: by_side for who, by_side in sums.items() if who not in posteriors}
        for shard, lane in zip(shards, lane_of, strict=True):
            if lane > 0:
                rows[shard.name] = self.measure(shard.name, _alone(shard), lane)
        return {**rows, POSTERIOR.name: sums[best]}, posteriors[best]

    @torch.no_grad()
    def measure_stretches(self, shards: Sequence[TrainingShard]) -> tuple[Sums, float]:
        """The mix of models by whole stretches of text, each on tokens of its own.

        Args:
            shards: one per lane.

        Returns: the sums, and the forgetting that is best on validation text.
        """
        by_forgetting: dict[float, Sums] = {}
        for side, texts in self._lanes.items():
            for name, lanes in texts.items():
                logprobs = [
                    token_logprobs(_as_score(shard.name, _alone(shard)), own, self._cut(lanes, lane))
                    for lane, (shard, own) in enumerate(zip(shards, lanes, strict=True))
                ]
                for forgetting in FORGETTINGS:
                    mixed_N = mixed_by_stretches(
                        lanes, [next(iter(one.values())) for one in logprobs], forgetting
                    )
                    sums = sum_by_windows(mixed_N, lanes[0], self._window)
                    by_forgetting.setdefault(forgetting, {}).setdefault(side, {})[name] = sums
        best = min(by_forgetting, key=lambda one: _validation_mean(by_forgetting[one]))
        return by_forgetting[best], best

    @torch.no_grad()
    def _measure(self, who: str, scorer: Scorer, side: str, lane: int) -> dict[str, UnitSums]:
        predictor, score = Predictor("baseline", who), _as_score(who, scorer)
        return {
            name: measure_scores(
                score, lanes[lane], self._cut(lanes, lane), units_of=lanes[0], unit_window=self._window
            )[predictor]
            for name, lanes in self._lanes[side].items()
        }

    def _cut(self, lanes: Sequence[LaneText], lane: int) -> Cut:
        share = lanes[lane].corpus.num_tokens / lanes[0].corpus.num_tokens
        return Cut(max(1, round(self._window * share)))


def _validation_mean(sums: Sums) -> float:
    return fmean(one.bits_per_byte for one in sums[VALIDATION].values())


def _as_score(who: str, scorer: Scorer) -> Score:
    predictor = Predictor("baseline", who)

    def score(ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Mapping[Predictor, Scores]:
        return {predictor: Scores(scorer(ids_T, lengths, targets_T))}

    return score


def _alone(shard: TrainingShard) -> Scorer:
    def score(token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
        return score_alone(shard, token_ids_T, lengths, targets_T, accuracy=False).logprobs_T

    return score


def figures_of(sums: Sums) -> Figures:
    """Bits per byte."""
    return {
        side: {name: one.bits_per_byte for name, one in by_name.items()} for side, by_name in sums.items()
    }
