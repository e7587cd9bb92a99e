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
        token_ids_T: int64, sequences of ``lengths`` one after the other.
        logit_rows: rows whose scores are wanted; None: all.

    Raises: ContextLengthError, InvalidRequestError, ShapeMismatchError, FusionShapeError.
    """
    plan = stack.plan
    reads_out = [plan.readout.kind != "anchor" or s == plan.anchor for s in range(len(backends))]
    # The head of a shard that nobody asks still has to run on something.
    runs = [
        backend.forward(token_ids_T, lengths, logit_rows if asked else [0])
        for backend, asked in zip(backends, reads_out, strict=True)
    ]
    walkers = [
        _Walker(run, keep_states=keep_anchor_states and s == plan.anchor) for s, run in enumerate(runs)
    ]
    device = next((parameter.device for parameter in stack.parameters()), token_ids_T.device)
    context = FusionContext.whole(lengths, want_metrics=want_metrics)
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
    vocab_size = min(shard.vocab_size for shard in plan.shards)
    mixable = [log_probabilities(shard_RV[:, :vocab_size]) for shard_RV in logits]
    log_weights_RS = stack.read_out(hidden, logit_features(mixable, normalised=True))
    mixed_RV = mix_logits(mixable, log_weights_RS, normalised=True)
    return BraidOutput(mixed_RV, log_weights_RS, list(mixable), anchor.states, metrics)


class _Walker:
    """One shard's forward between points: runs on from what was injected last, if anything was."""

    def __init__(self, run: SpanForward, *, keep_states: bool) -> None:
        self.states: list[Tensor] = []
        self._run = run
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
        """The head's input and its logits."""
        injected, self._injected = self._injected, None
        return self._run.finish(injected)

    def _advance(self, layer: int) -> Tensor:
        injected, self._injected = self._injected, None
        return self._run.run_to(layer) if injected is None else self._run.resume(injected, layer)
