"""A braid over whole texts at once, without caches: differentiable in fusion modules and readout.

The same spans, points and readout as the engine's, for training and evaluation in process. Knows no requests.

Shapes: T packed rows, R logit rows, S shards, D a shard's width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from braid_fusion.context import FusionContext
from braid_fusion.mixing import log_probabilities, logit_features, mix_logits
from braid_fusion.stack import FusionStack
from braid_orchestrator.inprocess.whole_lanes import WholeRows, whole_lanes
from braid_services.shard.backend import ShardBackend
from braid_services.shard.forward import SpanForward


@dataclass(frozen=True, slots=True)
class BraidOutput:
    """What one pass gives.

    ``scores`` (R, V): the anchor's logits, or mixed log-probabilities where the readout mixes. ``log_weights``
    (R, S): each shard's part in them. ``log_probs[s]`` (R, V) of each shard after fusion; None for a shard
    that the readout doesn't ask. ``anchor_states``: the anchor's states entering each layer, and last what
    enters its head; empty unless asked for.
    """

    scores: Tensor
    log_weights: Tensor
    log_probs: list[Tensor | None]
    anchor_states: list[Tensor] = field(default_factory=list)
    metrics: dict[str, Tensor] = field(default_factory=dict)


def run_whole(
    backends: Sequence[ShardBackend],
    stack: FusionStack,
    token_ids_T: Tensor,
    lengths: Sequence[int],
    *,
    logit_rows: Sequence[int] | None = None,
    keep_anchor_states: bool = False,
    want_metrics: bool = False,
) -> BraidOutput:
    """Run packed whole sequences through all shards in lock step.

    Args:
        backends: one per shard of the stack's plan, in its order.
        token_ids_T: int64, the anchor's, sequences of ``lengths`` one after the other. Shards with other
            tokenizers read what these say.
        logit_rows: rows whose scores are wanted; None: all.

    Raises: ContextLengthError, InvalidRequestError, ShapeMismatchError, FusionShapeError.
    """
    plan = stack.plan
    rows = range(token_ids_T.shape[0]) if logit_rows is None else logit_rows
    lanes = whole_lanes(backends, plan, token_ids_T, lengths, rows)
    reads_out = [plan.readout.kind != "anchor" or s == plan.anchor for s in range(len(backends))]
    walkers = [
        # The head of a shard that nobody asks still has to run on something.
        _Walker(backend, lanes.of_shard(s), asked, keep_states=keep_anchor_states and s == plan.anchor)
        for s, (backend, asked) in enumerate(zip(backends, reads_out, strict=True))
    ]
    device = next((parameter.device for parameter in stack.parameters()), token_ids_T.device)
    context = FusionContext.whole(lengths, want_metrics=want_metrics, alignment=lanes.alignment)
    metrics: dict[str, Tensor] = {}
    for point in plan.points:
        states = [
            walker.walk_to(layer).to(device) for walker, layer in zip(walkers, point.layers, strict=True)
        ]
        output = stack.fuse(point.name, states, context)
        metrics.update({f"{point.name}/{name}": value for name, value in output.metrics.items()})
        for walker, injected in zip(walkers, output.states, strict=True):
            walker.inject(injected)
    hidden: list[Tensor] = []
    logits: list[Tensor] = []
    anchor = walkers[plan.anchor]
    if keep_anchor_states:
        anchor.walk_to(plan.shards[plan.anchor].num_layers - 1)
    for walker, asked in zip(walkers, reads_out, strict=True):
        if asked:
            head_input_RD, logits_RV = walker.finish()
            hidden.append(head_input_RD.to(device))
            logits.append(logits_RV.to(device))
    if keep_anchor_states:
        anchor.states.append(hidden[plan.anchor if all(reads_out) else 0])
    if plan.readout.kind == "anchor":
        log_weights_RS = logits[0].new_full((logits[0].shape[0], len(backends)), -torch.inf)
        log_weights_RS[:, plan.anchor] = 0.0
        log_probs: list[Tensor | None] = [None] * len(backends)
        log_probs[plan.anchor] = log_probabilities(logits[0])
        return BraidOutput(logits[0], log_weights_RS, log_probs, anchor.states, metrics)
    mixable = lanes.in_anchors_vocabulary(logits)
    log_weights_RS = stack.read_out(hidden, logit_features(mixable, normalised=True))
    mixed_RV = mix_logits(mixable, log_weights_RS, normalised=True)
    return BraidOutput(mixed_RV, log_weights_RS, list(mixable), anchor.states, metrics)


class _Walker:
    """One shard's forward between points: runs on from what was injected last, if anything was."""

    def __init__(self, backend: ShardBackend, rows: WholeRows, reads_out: bool, *, keep_states: bool) -> None:
        self.states: list[Tensor] = []
        self._rows = rows
        self._width, self._vocab_size = backend.card.width, backend.card.vocab_size
        self._run: SpanForward | None = None
        if rows.lengths:
            self._run = backend.forward(rows.token_ids_T, rows.lengths, rows.logit_rows if reads_out else [0])
        self._keep_states = keep_states
        self._injected: Tensor | None = None
        self._layer = -1

    def walk_to(self, layer: int) -> Tensor:
        """The states entering ``layer``."""
        first = self._layer + 1 if self._keep_states else layer
        state: Tensor | None = None
        for stop in (*range(first, layer), layer):
            state = self._advance(stop)
            if self._keep_states and len(self.states) <= stop:
                self.states.append(state)
        self._layer = layer
        if state is None:
            raise RuntimeError(f"walked to layer {layer} without a stop")
        return state

    def inject(self, state: Tensor | None) -> None:
        """Go on from ``state``; None leaves the states as they are."""
        if state is not None:
            self._injected = state
            if self._keep_states:
                self.states[-1] = state

    def finish(self) -> tuple[Tensor, Tensor]:
        """The head's input and its logits, at the anchor's logit rows."""
        injected, self._injected = self._injected, None
        if self._run is None:
            ends = torch.zeros(0, self._width), torch.zeros(0, self._vocab_size)
        else:
            ends = self._run.finish(injected)
        return self._rows.at_logit_rows(ends[0]), self._rows.at_logit_rows(ends[1])

    def _advance(self, layer: int) -> Tensor:
        if self._run is None:
            return torch.zeros(0, self._width)
        injected, self._injected = self._injected, None
        return self._run.run_to(layer) if injected is None else self._run.resume(injected, layer)
