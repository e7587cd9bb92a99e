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
from braid_orchestrator.evaluation import (
    ORACLE,
    POSTERIOR,
    UNIFORM,
    Cut,
    LaneReader,
    Predictor,
    UnitSums,
    measure_scores,
)
from braid_orchestrator.evaluation.mixes import oracle_logprobs, posterior_log_weights, uniform_log_weights
from braid_orchestrator.evaluation.scoring import Scores, score_alone
from braid_orchestrator.training.braid_pass import run_to_ends
from braid_orchestrator.training.data import Document, MemorySource
from braid_orchestrator.training.ports import TrainingShard

VALIDATION, TEST = "validation", "test"
FORGETTINGS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)

Figures = dict[str, dict[str, float]]  # bits per byte by side and text
Sums = dict[str, dict[str, UnitSums]]  # by side and text


class MeasuredTexts:
    """Texts of both sides by their names, as tokenizers read them.

    Args:
        readers: one per lane of the contest's plan, the anchor's first.
        window: in tokens, whosever they are.

    Raises: InvalidRequestError for texts without two tokens.
    """

    def __init__(
        self,
        readers: Sequence[LaneReader],
        validation: Mapping[str, Sequence[Document]],
        test: Mapping[str, Sequence[Document]],
        window: int,
    ) -> None:
        self._cut = Cut(window)
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
        sums = self._measure("contestant", scorer, VALIDATION, lane)
        return {"loss": fmean(one.bits_per_byte for one in sums.values())}

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
                for who, one in measure_scores(score, lanes[0], self._cut).items():
                    sums.setdefault(who, {}).setdefault(side, {})[name] = one
        best = min(
            posteriors, key=lambda who: fmean(one.bits_per_byte for one in sums[who][VALIDATION].values())
        )
        rows = {who.name: by_side for who, by_side in sums.items() if who not in posteriors}
        for shard, lane in zip(shards, lane_of, strict=True):
            if lane > 0:
                rows[shard.name] = self.measure(shard.name, _alone(shard), lane)
        return {**rows, POSTERIOR.name: sums[best]}, posteriors[best]

    @torch.no_grad()
    def _measure(self, who: str, scorer: Scorer, side: str, lane: int) -> dict[str, UnitSums]:
        predictor = Predictor("baseline", who)

        def score(ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Mapping[Predictor, Scores]:
            return {predictor: Scores(scorer(ids_T, lengths, targets_T))}

        return {
            name: measure_scores(score, lanes[lane], self._cut, units_of=lanes[0])[predictor]
            for name, lanes in self._lanes[side].items()
        }


def _alone(shard: TrainingShard) -> Scorer:
    def score(token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
        return score_alone(shard, token_ids_T, lengths, targets_T, accuracy=False).logprobs_T

    return score


def figures_of(sums: Sums) -> Figures:
    """Bits per byte."""
    return {
        side: {name: one.bits_per_byte for name, one in by_name.items()} for side, by_name in sums.items()
    }
