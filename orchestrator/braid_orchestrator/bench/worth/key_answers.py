"""What answers exercises, and how answers are counted. Trains nothing.

Shapes: T packed rows, R rows of answers, S shards, V vocabulary, E exercises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from braid_fusion.stack import FusionStack
from braid_orchestrator.bench.worth.key_exercises import Exercise
from braid_orchestrator.bench.worth.key_readings import ExerciseBatch, Reading, pack
from braid_orchestrator.evaluation.mixes import posterior_log_weights
from braid_orchestrator.training.braid_pass import run_to_ends
from braid_orchestrator.training.ports import TrainingShard

# Natural log-probabilities (R, V) of what follows the rows that are answered.
Predict = Callable[[ExerciseBatch], Tensor]

EXERCISES_AT_ONCE = 250


@dataclass(frozen=True, slots=True)
class Answerer:
    """What answers exercises, and how it reads them; ``num_parameters`` of it were trained."""

    predict: Predict
    reading: Reading
    num_parameters: int


def model_predict(model: Any) -> Predict:
    """What a model of transformers answers."""

    def predict(batch: ExerciseBatch) -> Tensor:
        return answer_logits(model, batch).log_softmax(-1)

    return predict


def posterior_predict(shards: Sequence[TrainingShard], stack: FusionStack, forgetting: float) -> Predict:
    """Both models mixed by how well each has predicted the exercise so far. ``stack``: without points, with a
    readout that asks all shards."""

    def predict(batch: ExerciseBatch) -> Tensor:
        targets_T = batch.token_ids_T.roll(-1)  # a last row is an answer's, or nothing comes after it
        targets_T[batch.loss_rows_R] = batch.targets_R
        ends = run_to_ends(shards, stack, batch.token_ids_T, batch.lengths, targets_T, want_logits=True)
        weights_TS = posterior_log_weights(ends.target_logprobs_RA, batch.lengths, forgetting)
        mixed_TV = ends.mix(weights_TS).log_probs
        if mixed_TV is None:
            raise RuntimeError("a pass gave less than it was asked for")
        return mixed_TV[batch.loss_rows_R]

    return predict


@torch.inference_mode()
def share_solved(answerer: Answerer, exercises: Sequence[Exercise]) -> float:
    """How many of the exercises are answered without a wrong character when each is the likeliest one, as greedy
    generation would."""
    solved = 0
    for begin in range(0, len(exercises), EXERCISES_AT_ONCE):
        batch = pack(exercises[begin : begin + EXERCISES_AT_ONCE], answerer.reading)
        is_right_R = answerer.predict(batch).argmax(-1) == batch.targets_R
        solved += sum(bool(rows.all()) for rows in torch.split(is_right_R, list(batch.rows_E)))
    return solved / len(exercises)


def answer_logits(model: Any, batch: ExerciseBatch) -> Tensor:
    """(R, V), of a model of transformers."""
    shape = (len(batch.lengths), batch.lengths[0])
    logits_TV: Tensor = model(input_ids=batch.token_ids_T.view(shape), use_cache=False).logits.flatten(0, 1)
    return logits_TV[batch.loss_rows_R]
