"""A whole braid over whole texts at once, its shards wherever they are: the log-probabilities of what comes next.

The same spans, points and readout as the engine's. Differentiable in the stack's parameters; where all shards read
alike, no logits leave a shard. Knows no batches and no optimiser.

Shapes: T packed rows, R logit rows, S shards, D a shard's width, N features per shard, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from braid_fusion.context import FusionContext
from braid_fusion.mixing import logit_features, mix_logits
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_orchestrator.inprocess.whole_lanes import WholeLanes, whole_lanes
from braid_orchestrator.training.lockstep import run_spans
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.training import HeadInputs, SpanInputs, SpanOutputs


@dataclass(frozen=True, slots=True)
class PassOutput:
    """``target_logprobs`` (R,) natural logarithms; ``log_weights`` (R, S) each shard's part in them."""

    target_logprobs: Tensor
    log_weights: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def run_pass(
    shards: Sequence[TrainingShard],
    stack: FusionStack,
    token_ids_T: Tensor,
    lengths: Sequence[int],
    targets_R: Tensor,
    logit_rows: Sequence[int] | None = None,
    *,
    want_metrics: bool = False,
) -> PassOutput:
    """Run packed whole sequences through all shards in lock step.

    Args:
        shards: one per shard of the stack's plan, in its order.
        token_ids_T: int64, the anchor's, sequences of ``lengths`` one after the other. Shards with other
            tokenizers read what these say.
        targets_R: int64, the anchor's tokens whose log-probabilities are wanted.
        logit_rows: the rows that these follow; None: all.

    Raises: BraidError of every kind; FusionShapeError.
    """
    plan = stack.plan
    rows = range(token_ids_T.shape[0]) if logit_rows is None else logit_rows
    lanes = whole_lanes(shards, plan, token_ids_T, lengths, rows)
    walk = _Walk(shards, plan, lanes)
    device = next((parameter.device for parameter in stack.parameters()), token_ids_T.device)
    context = FusionContext.whole(lengths, want_metrics=want_metrics, alignment=lanes.alignment)
    metrics: dict[str, Tensor] = {}
    for point in plan.points:
        states = [state.to(device) for state in walk.walk_to(point.layers)]
        output = stack.fuse(point.name, states, context)
        metrics.update({f"{point.name}/{name}": value for name, value in output.metrics.items()})
        walk.inject(output.states)
    return _read_out(walk, stack, lanes, targets_R, device, metrics)


def _read_out(
    walk: _Walk,
    stack: FusionStack,
    lanes: WholeLanes,
    targets_R: Tensor,
    device: torch.device,
    metrics: dict[str, Tensor],
) -> PassOutput:
    plan = stack.plan
    kind, several = plan.readout.kind, plan.num_lanes > 1
    if kind == "anchor":
        (end,) = walk.finish([plan.anchor], HeadInputs(targets=targets_R))
        logprobs_R = _there(end.target_logprobs).to(device)
        log_weights_RS = stack.read_out(
            [logprobs_R.new_zeros(logprobs_R.shape[0], shard.width) for shard in plan.shards]
        )
        return PassOutput(logprobs_R, log_weights_RS, metrics)
    asked = range(len(plan.shards))
    if several:
        ends = walk.finish(asked, HeadInputs(want_logits=True))
    else:
        ends = walk.finish(asked, HeadInputs(targets=targets_R, want_features=kind == "gate"))
    at_rows = [lanes.of_shard(s).at_logit_rows for s in asked]
    hidden = [at(_there(end.hidden)).to(device) for at, end in zip(at_rows, ends, strict=True)]
    if several:
        logits = [at(_there(end.logits)).to(device) for at, end in zip(at_rows, ends, strict=True)]
        mixable = lanes.in_anchors_vocabulary(logits)
        log_weights_RS = stack.read_out(hidden, logit_features(mixable, normalised=True))
        mixed_RV = mix_logits(mixable, log_weights_RS, normalised=True)
        logprobs_R = mixed_RV.gather(1, targets_R.to(device)[:, None])[:, 0]
        return PassOutput(logprobs_R, log_weights_RS, metrics)
    features_RSN = None
    if kind == "gate":
        features_RSN = torch.stack([_there(end.features) for end in ends], dim=1).to(device)
    log_weights_RS = stack.read_out(hidden, features_RSN)
    own_RS = torch.stack([_there(end.target_logprobs) for end in ends], dim=1).to(device)
    return PassOutput((log_weights_RS + own_RS).logsumexp(-1), log_weights_RS, metrics)


class _Walk:
    """All shards on their way through their layers, from point to point."""

    def __init__(self, shards: Sequence[TrainingShard], plan: BraidPlan, lanes: WholeLanes) -> None:
        self._shards = shards
        self._lanes = lanes
        self._layers = [0] * len(shards)
        self._states: list[Tensor | None] = [None] * len(shards)
        same = [s.vocab_size for s, lane in zip(plan.shards, plan.lane_of, strict=True) if lane == 0]
        self._vocab_size = min(same)

    def walk_to(self, layers: Sequence[int]) -> list[Tensor]:
        """The states entering these layers, one per shard."""
        running: list[int] = []
        for s, layer in enumerate(layers):
            if not self._lanes.of_shard(s).lengths:
                self._states[s] = torch.zeros(0, self._shards[s].card.width)
            elif layer != self._layers[s] or self._states[s] is None:
                running.append(s)
        outputs = self._run(running, [layers[s] for s in running], None)
        for s, output in zip(running, outputs, strict=True):
            self._states[s] = output.hidden
        self._layers = list(layers)
        return [_there(state) for state in self._states]

    def inject(self, states: Sequence[Tensor | None]) -> None:
        """Go on from these; None leaves a shard's states as they are."""
        self._states = [own if new is None else new for own, new in zip(self._states, states, strict=True)]

    def finish(self, asked: Sequence[int], head: HeadInputs[Tensor]) -> list[SpanOutputs[Tensor]]:
        """Run these shards to their ends. Targets are left out where a lane has other rows than the anchor's."""
        running = [s for s in asked if self._lanes.of_shard(s).lengths]
        ends = dict(
            zip(
                running,
                self._run(running, [self._shards[s].card.num_layers for s in running], head),
                strict=True,
            )
        )
        return [ends[s] if s in ends else self._nothing(s) for s in asked]

    def _nothing(self, shard: int) -> SpanOutputs[Tensor]:
        card = self._shards[shard].card
        return SpanOutputs(hidden=torch.zeros(0, card.width), logits=torch.zeros(0, card.vocab_size))

    def _run(
        self, running: Sequence[int], ends: Sequence[int], head: HeadInputs[Tensor] | None
    ) -> list[SpanOutputs[Tensor]]:
        if not running:
            return []
        inputs = []
        for s, end in zip(running, ends, strict=True):
            rows = self._lanes.of_shard(s)
            own = None
            if head is not None:
                own = HeadInputs(
                    None if rows.takes_all_rows else torch.tensor(list(rows.logit_rows), dtype=torch.int64),
                    head.targets,
                    self._vocab_size if head.targets is not None else 0,
                    head.want_features,
                    head.want_logits,
                )
            inputs.append(SpanInputs(self._layers[s], end, tuple(rows.lengths), rows.token_ids_T, head=own))
        return run_spans([self._shards[s] for s in running], inputs, [self._states[s] for s in running])


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("a shard gave less than it was asked for")
    return tensor
