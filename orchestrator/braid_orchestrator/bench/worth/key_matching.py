"""A fusion point learns to say to its anchor what the anchor would have read: state matching.

The goal for the states that leave the point are the anchor's own states on the text with all keys replaced by their
numbers. It needs pairs of texts of which one says openly what the other needs a partner for; a language-model loss
alone, which comes after, didn't find the way there (see docs/results/keys.md).

Letters: T packed rows, D the anchor's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from braid_fusion.context import FusionContext
from braid_fusion.stack import FusionStack
from braid_orchestrator.bench.worth.key_exercises import Exercise, KeyTasks, pack
from braid_orchestrator.training.lockstep import run_spans
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.training import SpanInputs

Pair = tuple[Exercise, Exercise]  # what is read, and what it should be to the anchor; as long as each other


def matching_loss(shards: Sequence[TrainingShard], stack: FusionStack) -> Callable[[list[Pair]], Tensor]:
    """How far the states that leave the first point are from the goal, relative to what enters: 1 if it does
    nothing, 0 for a perfect match. No layer behind the point is run, and no gradient leaves the point.
    """
    point, anchor = stack.plan.points[0], stack.plan.anchor

    def states_of(exercises: list[Exercise], whom: Sequence[int]) -> tuple[list[Tensor], tuple[int, ...]]:
        batch = pack(exercises)
        inputs = [SpanInputs(0, point.layers[s], batch.lengths, batch.token_ids_T) for s in whom]
        with torch.no_grad():
            outputs = run_spans([shards[s] for s in whom], inputs, [None] * len(whom))
        states = [output.hidden for output in outputs]
        if any(state is None for state in states):
            raise RuntimeError("a span was answered without states")
        return [state for state in states if state is not None], batch.lengths

    def loss_of(pairs: list[Pair]) -> Tensor:
        before, lengths = states_of([read for read, _ in pairs], range(len(shards)))
        (goal_TD,), _ = states_of([meant for _, meant in pairs], [anchor])
        after_TD = stack.fuse(point.name, before, FusionContext.whole(lengths)).states[anchor]
        if after_TD is None:
            raise RuntimeError("the anchor receives nothing at the first point")
        return (after_TD - goal_TD).square().sum() / (before[anchor] - goal_TD).square().sum()

    return loss_of


@dataclass(frozen=True, slots=True)
class MatchingPairs:
    """Endless batches of ``size`` pairs: compositions, with what they are to the calculator, and calculations, which
    are to stay what they are."""

    tasks: KeyTasks
    compose_share: float
    size: int

    def __iter__(self) -> Iterator[list[Pair]]:
        draw = Random(f"pairs {self.tasks.seed}")
        while True:
            yield [self._pair(draw) for _ in range(self.size)]

    def _pair(self, draw: Random) -> Pair:
        if draw.random() >= self.compose_share:
            exercise = self.tasks.calculate(draw)
            return exercise, exercise
        exercise = self.tasks.compose(draw, self.tasks.trained_keys)
        return exercise, self.tasks.substituted(exercise)
