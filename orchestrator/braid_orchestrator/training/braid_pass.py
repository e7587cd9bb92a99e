"""A whole braid over whole texts at once, its shards wherever they are: the log-probabilities of what comes next.

The same spans, points and readout as the engine's. Differentiable in the stack's parameters; where all shards read
alike, no logits leave a shard unless they are asked for. Knows no batches and no optimiser.

`run_pass` is the whole. It is made of `run_to_ends`, all that shards do, and `read_out`, which several readouts can
do over the same ends.

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
from braid_orchestrator.inprocess.whole_lanes import OnCut, WholeLanes, whole_lanes
from braid_orchestrator.training.lockstep import run_spans
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.errors import InvalidRequestError
from braid_rpc.training import HeadInputs, SpanInputs, SpanOutputs


@dataclass(frozen=True, slots=True)
class PassOutput:
    """``target_logprobs`` (R,) natural logarithms; ``log_weights`` (R, S) each shard's part in them. ``log_probs``
    (R, V) is the whole distribution, where the shards' logits were asked for."""

    target_logprobs: Tensor
    log_weights: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    log_probs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PassEnds:
    """What the heads of the shards that a readout asks gave at the R logit rows; A of them, in the plan's order.

    ``hidden`` entered the heads, (R, D) each. ``target_logprobs_RA`` are of the targets ``targets_R``, in the
    anchor's vocabulary. ``log_probs``: (R, V) each, over that vocabulary; None where no logits were asked for.
    ``features`` (R, A, N) are what a gate reads off the logits; None where nobody needs them or logits are there.
    """

    targets_R: Tensor  # noqa: N815 - shape letters
    hidden: list[Tensor]
    target_logprobs_RA: Tensor  # noqa: N815 - shape letters
    log_probs: list[Tensor] | None = None
    features: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def mix(self, log_weights_RA: Tensor) -> PassOutput:
        """Probabilities of the shards asked, mixed by weights that sum to one in each row."""
        if self.log_probs is None:
            mixed_R = (log_weights_RA + self.target_logprobs_RA).logsumexp(-1)
            return PassOutput(mixed_R, log_weights_RA, self.metrics)
        mixed_RV = mix_logits(self.log_probs, log_weights_RA, normalised=True)
        mixed_R = mixed_RV.gather(1, self.targets_R[:, None])[:, 0]
        return PassOutput(mixed_R, log_weights_RA, self.metrics, mixed_RV)


def run_pass(
    shards: Sequence[TrainingShard],
    stack: FusionStack,
    token_ids_T: Tensor,
    lengths: Sequence[int],
    targets_R: Tensor,
    logit_rows: Sequence[int] | None = None,
    *,
    want_metrics: bool = False,
    want_log_probs: bool = False,
    on_cut: OnCut | None = None,
) -> PassOutput:
    """Run packed whole sequences through all shards in lock step.

    Args:
        shards: one per shard of the stack's plan, in its order.
        token_ids_T: int64, the anchor's, sequences of ``lengths`` one after the other. Shards with other
            tokenizers read what these say.
        targets_R: int64, the anchor's tokens whose log-probabilities are wanted; among those that all shards of its
            tokenizer have.
        logit_rows: the rows that these follow; None: all.
        want_log_probs: the whole distribution too; every shard that is asked sends its logits.
        on_cut: with it, sequences that don't fit are run in parts, see `whole_lanes`: every row is there all the
            same, and sees less of what is before it.

    Raises: InvalidRequestError for targets that are no such tokens, before anything is run; BraidError of every kind;
        FusionShapeError.
    """
    ends = run_to_ends(
        shards,
        stack,
        token_ids_T,
        lengths,
        targets_R,
        logit_rows,
        want_metrics=want_metrics,
        want_logits=want_log_probs,
        on_cut=on_cut,
    )
    return read_out(stack, ends)


def run_to_ends(
    shards: Sequence[TrainingShard],
    stack: FusionStack,
    token_ids_T: Tensor,
    lengths: Sequence[int],
    targets_R: Tensor,
    logit_rows: Sequence[int] | None = None,
    *,
    want_metrics: bool = False,
    want_logits: bool = False,
    on_cut: OnCut | None = None,
) -> PassEnds:
    """As `run_pass`, up to the heads of those that the stack's readout asks. Raises: as `run_pass`."""
    plan = stack.plan
    _check_targets(targets_R, _vocab_size(plan))
    rows = range(token_ids_T.shape[0]) if logit_rows is None else logit_rows
    lanes = whole_lanes(shards, plan, token_ids_T, lengths, rows, on_cut=on_cut)
    lengths = lanes.of_shard(plan.anchor).lengths
    walk = _Walk(shards, plan, lanes)
    device = next((parameter.device for parameter in stack.parameters()), token_ids_T.device)
    context = FusionContext.whole(lengths, want_metrics=want_metrics, alignment=lanes.alignment)
    metrics: dict[str, Tensor] = {}
    for point in plan.points:
        states = [state.to(device) for state in walk.walk_to(point.layers)]
        output = stack.fuse(point.name, states, context)
        metrics.update({f"{point.name}/{name}": value for name, value in output.metrics.items()})
        walk.inject(output.states)
    kind = plan.readout.kind
    asked = [plan.anchor] if kind == "anchor" else list(range(len(plan.shards)))
    if want_logits or (len(asked) > 1 and plan.num_lanes > 1):
        head: HeadInputs[Tensor] = HeadInputs(want_logits=True)
    else:
        head = HeadInputs(targets=targets_R, want_features=kind == "gate")
    ends = walk.finish(asked, head)
    at_rows = [lanes.of_shard(s).at_logit_rows for s in asked]
    hidden = [at(_there(end.hidden)).to(device) for at, end in zip(at_rows, ends, strict=True)]
    targets_R = targets_R.to(device)
    if head.want_logits:
        logits = [at(_there(end.logits)).to(device) for at, end in zip(at_rows, ends, strict=True)]
        log_probs = lanes.in_anchors_vocabulary(logits, asked)
        own_RA = torch.cat([own_RV.gather(1, targets_R[:, None]) for own_RV in log_probs], dim=1)
        return PassEnds(targets_R, hidden, own_RA, log_probs, None, metrics)
    own_RA = torch.stack([_there(end.target_logprobs) for end in ends], dim=1).to(device)
    features = None
    if head.want_features:
        features = torch.stack([_there(end.features) for end in ends], dim=1).to(device)
    return PassEnds(targets_R, hidden, own_RA, None, features, metrics)


def read_out(stack: FusionStack, ends: PassEnds) -> PassOutput:
    """What a stack's readout makes of ends. They may be another stack's over the same shards, whose readout asks the
    same ones. Raises: FusionShapeError."""
    if stack.plan.readout.kind == "anchor":
        own_R = ends.target_logprobs_RA[:, 0]
        num_rows = own_R.shape[0]
        log_weights_RS = stack.read_out(
            [own_R.new_zeros(num_rows, shard.width) for shard in stack.plan.shards]
        )
        log_probs = None if ends.log_probs is None else ends.log_probs[0]
        return PassOutput(own_R, log_weights_RS, ends.metrics, log_probs)
    features = ends.features
    if ends.log_probs is not None:
        features = logit_features(ends.log_probs, normalised=True)
    return ends.mix(stack.read_out(ends.hidden, features))


class _Walk:
    """All shards on their way through their layers, from point to point."""

    def __init__(self, shards: Sequence[TrainingShard], plan: BraidPlan, lanes: WholeLanes) -> None:
        self._shards = shards
        self._lanes = lanes
        self._layers = [0] * len(shards)
        self._states: list[Tensor | None] = [None] * len(shards)
        self._vocab_size = _vocab_size(plan)

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


def _vocab_size(plan: BraidPlan) -> int:
    """How many tokens all shards that read the anchor's have."""
    return min(s.vocab_size for s, lane in zip(plan.shards, plan.lane_of, strict=True) if lane == 0)


def _check_targets(targets_R: Tensor, vocab_size: int) -> None:
    if not targets_R.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(targets_R))
    if low < 0 or high >= vocab_size:
        raise InvalidRequestError(f"targets: got values from {low} to {high}, expected [0, {vocab_size})")


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("a shard gave less than it was asked for")
    return tensor
