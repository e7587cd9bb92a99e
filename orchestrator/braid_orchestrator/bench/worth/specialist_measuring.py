"""A seed's texts in tokens, and how well contestants predict them: sums by windows. Knows no contestant.

Shapes: T packed rows, S specialists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from tokenizers import Tokenizer
from torch import Tensor

from braid_orchestrator.bench.worth.specialist_models import Scorer, load_backend
from braid_orchestrator.bench.worth.specialist_parents import KINDS
from braid_orchestrator.bench.worth.specialist_texts import SpecialistTexts
from braid_orchestrator.demo.tokenizer import encode_documents
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
from braid_orchestrator.training.data import Document, MemorySource
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.errors import NotFoundError

VALIDATION, TEST = "validation", "test"
FORGETTINGS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)

Figures = dict[str, dict[str, float]]  # bits per byte by side and text
Sums = dict[str, dict[str, UnitSums]]  # by side and text


class MeasuredTexts:
    """What trains, and texts to measure on, as the specialists in ``folder`` read them.

    Raises: NotFoundError without the specialists; InvalidRequestError for texts without two tokens.
    """

    def __init__(self, folder: Path, texts: SpecialistTexts, window: int) -> None:
        for kind in KINDS:
            if not (folder / kind / "config.json").is_file():
                raise NotFoundError(
                    f"{folder / kind}: got no model, expected the one that a finished run has left there; "
                    "remove the file of finished runs to train it again"
                )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        reader = LaneReader(load_backend(folder, KINDS[0]))
        self.tokens = torch.tensor(encode_documents(tokenizer, texts.train))
        self._cut = Cut(window)
        self._lanes = {
            side: {
                name: reader.read(MemorySource(name, [Document(name, "\n\n".join(parts))]), window)
                for name, parts in by_name.items()
            }
            for side, by_name in ((VALIDATION, texts.validation), (TEST, texts.test))
        }

    def measure(self, who: str, scorer: Scorer) -> Sums:
        """Of a contestant, on all texts of both sides."""
        return {side: self._measure(who, scorer, side) for side in self._lanes}

    def validate(self, scorer: Scorer) -> dict[str, float]:
        """What training chooses its best weights by: the mean over the validation texts."""
        sums = self._measure("contestant", scorer, VALIDATION)
        return {"loss": fmean(one.bits_per_byte for one in sums.values())}

    @torch.no_grad()
    def measure_mixes(self, shards: Sequence[TrainingShard]) -> tuple[dict[str, Sums], float]:
        """The specialists alone and the mixes that need no training, by their rows' names.

        Returns: the sums, and the posterior's forgetting that is best on validation text.
        """
        posteriors = {Predictor("baseline", f"{one:g}"): one for one in FORGETTINGS}

        def score(ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Mapping[Predictor, Scores]:
            alone = [score_alone(shard, ids_T, lengths, targets_T, accuracy=False) for shard in shards]
            own_TS = torch.stack([one.logprobs_T for one in alone], dim=1)
            weights = {who: posterior_log_weights(own_TS, lengths, one) for who, one in posteriors.items()}
            weights[UNIFORM] = uniform_log_weights(*own_TS.shape)
            return {
                **{Predictor("shard", shard.name): one for shard, one in zip(shards, alone, strict=True)},
                **{who: Scores((own_TS + one_TS).logsumexp(-1)) for who, one_TS in weights.items()},
                ORACLE: Scores(oracle_logprobs(own_TS)),
            }

        sums: dict[Predictor, Sums] = {}
        for side, lanes in self._lanes.items():
            for name, lane in lanes.items():
                for who, one in measure_scores(score, lane, self._cut).items():
                    sums.setdefault(who, {}).setdefault(side, {})[name] = one
        best = min(
            posteriors, key=lambda who: fmean(one.bits_per_byte for one in sums[who][VALIDATION].values())
        )
        rows = {who.name: by_side for who, by_side in sums.items() if who not in posteriors}
        return {**rows, POSTERIOR.name: sums[best]}, posteriors[best]

    @torch.no_grad()
    def _measure(self, who: str, scorer: Scorer, side: str) -> dict[str, UnitSums]:
        predictor = Predictor("baseline", who)

        def score(ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Mapping[Predictor, Scores]:
            return {predictor: Scores(scorer(ids_T, lengths, targets_T))}

        return {
            name: measure_scores(score, lane, self._cut)[predictor]
            for name, lane in self._lanes[side].items()
        }


def figures_of(sums: Sums) -> Figures:
    """Bits per byte."""
    return {
        side: {name: one.bits_per_byte for name, one in by_name.items()} for side, by_name in sums.items()
    }
