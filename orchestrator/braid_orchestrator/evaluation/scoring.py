"""What everybody gives the tokens of packed windows: shards alone, mixes of their outputs, the braid, the oracle.

Shards are run twice, once without fusion points for all that is made of their outputs, and once as a braid; wherever
they are, without gradients. Knows neither texts nor sums.

Shapes: T packed rows, S shards, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from braid_fusion.mixing import log_probabilities
from braid_fusion.plan import BraidPlan, PlanReadout
from braid_fusion.stack import FusionStack
from braid_orchestrator.evaluation.mixes import (
    check_forgetting,
    oracle_logprobs,
    posterior_log_weights,
    uniform_log_weights,
)
from braid_orchestrator.inprocess.whole_lanes import CutWarning, OnCut
from braid_orchestrator.training.braid_pass import PassOutput, read_out, run_pass, run_to_ends
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.training import HeadInputs, SpanInputs

Kind = Literal["shard", "baseline", "braid", "bound"]


class Predictor(NamedTuple):
    """Who predicts. A bound is nobody: no model could do it."""

    kind: Kind
    name: str


UNIFORM = Predictor("baseline", "uniform mix")
POSTERIOR = Predictor("baseline", "posterior mix")
GLOBAL = Predictor("baseline", "global mix")
GATE = Predictor("baseline", "token gate")
BRAID = Predictor("braid", "braid")
ORACLE = Predictor("bound", "oracle")


@dataclass(frozen=True, slots=True)
class Scores:
    """``logprobs_T``: natural, of the tokens that came. ``hits_T``: whether each was the likeliest of all; None where
    no distributions were asked for."""

    logprobs_T: Tensor  # noqa: N815 - shape letters
    hits_T: Tensor | None = None  # noqa: N815 - shape letters


@dataclass(frozen=True, slots=True, eq=False)
class Lineup:
    """All who are compared: the shards of a braid, its modules ``stack``, and ``learned`` readouts without points
    (see `fitting`). ``accuracy``: tell hits too, for which shards send their logits. ``on_cut`` is told of windows
    that are run in parts, because they take more of another shard's tokens than its context."""

    shards: Sequence[TrainingShard]
    stack: FusionStack
    learned: Mapping[Predictor, FusionStack] = field(default_factory=dict)
    forgetting: float = 1.0
    accuracy: bool = True
    on_cut: OnCut = field(default_factory=CutWarning)
    outputs: FusionStack = field(init=False)

    def __post_init__(self) -> None:
        check_forgetting(self.forgetting)
        object.__setattr__(self, "outputs", FusionStack(outputs_plan(self.plan)))

    @property
    def plan(self) -> BraidPlan:
        """The braid's."""
        return self.stack.plan

    @property
    def predictors(self) -> list[Predictor]:
        """In the order of a table."""
        shards = [self.of_shard(index) for index in range(len(self.shards))]
        if len(shards) == 1:
            return [*shards, BRAID]
        return [*shards, UNIFORM, POSTERIOR, *self.learned, BRAID, ORACLE]

    def of_shard(self, index: int) -> Predictor:
        """A shard alone."""
        return Predictor("shard", self.plan.shards[index].name)

    @property
    def foreign(self) -> list[int]:
        """Shards that don't read by the anchor's tokenizer, whose own tokens `score_alone` scores."""
        return [index for index, lane in enumerate(self.plan.lane_of) if lane]


def outputs_plan(plan: BraidPlan, readout: str = "gate") -> BraidPlan:
    """The same shards without any exchange, but for what a readout makes of their outputs."""
    return replace(plan, points=(), readout=PlanReadout(readout))


@torch.no_grad()
def score_windows(
    lineup: Lineup, token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor
) -> dict[Predictor, Scores]:
    """Scores of all but foreign shards.

    Args:
        token_ids_T: int64, the anchor's, windows of ``lengths`` one after the other.
        targets_T: int64, the token behind each row.

    Raises: BraidError of every kind.
    """
    plan, several = lineup.plan, len(lineup.shards) > 1
    scores: dict[Predictor, Scores] = {}
    ends = run_to_ends(
        lineup.shards,
        lineup.outputs,
        token_ids_T,
        lengths,
        targets_T,
        want_logits=lineup.accuracy,
        on_cut=lineup.on_cut,
    )
    own_TS = ends.target_logprobs_RA
    hits_TS = None
    if lineup.accuracy and ends.log_probs is not None:
        hits_TS = torch.stack([_hits(own_TV, targets_T) for own_TV in ends.log_probs], dim=1)
    for index, lane in enumerate(plan.lane_of):
        if lane == 0:
            hits_T = None if hits_TS is None else hits_TS[:, index]
            scores[lineup.of_shard(index)] = Scores(own_TS[:, index], hits_T)
    if several:
        fixed = {
            UNIFORM: uniform_log_weights(*own_TS.shape),
            POSTERIOR: posterior_log_weights(own_TS, lengths, lineup.forgetting),
        }
        for who, log_weights_TS in fixed.items():
            scores[who] = _scores(ends.mix(log_weights_TS.to(own_TS)), targets_T, lineup.accuracy)
        for who, stack in lineup.learned.items():
            scores[who] = _scores(read_out(stack, ends), targets_T, lineup.accuracy)
        scores[ORACLE] = Scores(oracle_logprobs(own_TS), None if hits_TS is None else hits_TS.any(-1))
    braid = run_pass(
        lineup.shards,
        lineup.stack,
        token_ids_T,
        lengths,
        targets_T,
        want_log_probs=lineup.accuracy,
        on_cut=lineup.on_cut,
    )
    scores[BRAID] = _scores(braid, targets_T, lineup.accuracy)
    return scores


@torch.no_grad()
def score_alone(
    shard: TrainingShard,
    token_ids_T: Tensor,
    lengths: Sequence[int],
    targets_T: Tensor,
    *,
    accuracy: bool = True,
) -> Scores:
    """Scores of one shard on tokens of its own. Raises: BraidError of every kind."""
    head = HeadInputs(targets=targets_T, want_logits=accuracy)
    inputs = SpanInputs(0, shard.card.num_layers, tuple(lengths), token_ids_T, head=head)
    end = shard.forward(inputs).result()
    if end.target_logprobs is None:
        raise RuntimeError("a shard gave less than it was asked for")
    hits_T = None if end.logits is None else _hits(log_probabilities(end.logits), targets_T)
    return Scores(end.target_logprobs, hits_T)


def _scores(output: PassOutput, targets_T: Tensor, accuracy: bool) -> Scores:
    hits_T = None
    if accuracy and output.log_probs is not None:
        hits_T = _hits(output.log_probs, targets_T)
    return Scores(output.target_logprobs.cpu(), hits_T)


def _hits(log_probs_TV: Tensor, targets_T: Tensor) -> Tensor:
    return log_probs_TV.argmax(-1).cpu() == targets_T
