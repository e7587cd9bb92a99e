"""A fusion point learns to say to its receiver what that would have read: state matching.

The goal for the states that leave the point are the receiver's own states on the text with all keys replaced by their
numbers. It needs pairs of texts of which one says openly what the other needs a partner for; a language-model loss
alone, which comes after, didn't find the way there (see docs/results/keys.md).

Letters: T packed rows of a shard, D the receiver's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from braid_fusion.context import FusionContext
from braid_fusion.stack import FusionStack
from braid_orchestrator.bench.worth.key_exercises import START, Exercise, KeyTasks
from braid_orchestrator.bench.worth.key_readings import Reading, pack
from braid_orchestrator.inprocess.whole_lanes import whole_lanes
from braid_orchestrator.training.lockstep import run_spans
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.training import SpanInputs

Pair = tuple[Exercise, Exercise]  # what is read, and what it should be to the receiver; as long as each other


def matching_loss(
    shards: Sequence[TrainingShard], stack: FusionStack, anchor_reads: Reading, receiver_reads: Reading
) -> Callable[[list[Pair]], Tensor]:
    """How far the states that leave the first point are from the goal, relative to what enters: 1 if it does
    nothing, 0 for a perfect match. No layer behind the point is run, and no gradient leaves the point.

    Args:
        receiver_reads: characters; both texts of a pair then have a row for each, though the anchor may have
            different numbers of tokens for them.
    """
    point = stack.plan.points[0]
    (receiver,) = point.receivers

    def states_of(whom: Sequence[int], rows: Sequence[tuple[Tensor, Sequence[int]]]) -> list[Tensor]:
        inputs = [
            SpanInputs(0, point.layers[s], tuple(lengths), token_ids_T)
            for s, (token_ids_T, lengths) in zip(whom, rows, strict=True)
        ]
        with torch.no_grad():
            outputs = run_spans([shards[s] for s in whom], inputs, [None] * len(whom))
        states = [output.hidden for output in outputs]
        if any(state is None for state in states):
            raise RuntimeError("a span was answered without states")
        return [state for state in states if state is not None]

    def loss_of(pairs: list[Pair]) -> Tensor:
        batch = pack([read for read, _ in pairs], anchor_reads)
        lanes = whole_lanes(shards, stack.plan, batch.token_ids_T, batch.lengths, ())
        own = [lanes.of_shard(s) for s in range(len(shards))]
        before = states_of(range(len(shards)), [(rows.token_ids_T, rows.lengths) for rows in own])
        meant_T = _filled([meant for _, meant in pairs], own[receiver].lengths, receiver_reads)
        (goal_TD,) = states_of([receiver], [(meant_T, own[receiver].lengths)])
        context = FusionContext.whole(batch.lengths, alignment=lanes.alignment)
        after_TD = stack.fuse(point.name, before, context).states[receiver]
        if after_TD is None:
            raise RuntimeError("the receiver gets nothing at the first point")
        return (after_TD - goal_TD).square().sum() / (before[receiver] - goal_TD).square().sum()

    return loss_of


def _filled(exercises: Sequence[Exercise], lengths: Sequence[int], reading: Reading) -> Tensor:
    """As `pack` has them, but as long as other rows are."""
    (fill,) = reading.encode(START).ids
    ids: list[int] = []
    for exercise, length in zip(exercises, lengths, strict=True):
        own = reading.encode(exercise.text).ids[:-1]
        ids += own + [fill] * (length - len(own))
    return torch.tensor(ids)


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
