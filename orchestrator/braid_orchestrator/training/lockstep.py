"""One span of every shard as one step of autograd, so that all shards work at once, forward and backward.

Shapes: T packed rows of a shard, R logit rows, D its width.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from braid_fusion.first_order import first_order_only
from braid_orchestrator.training.ports import Pending, TrainingShard
from braid_rpc.training import SpanInputs, SpanOutputs

_RUN = uuid.uuid4().hex
_numbers = itertools.count()


def run_spans(
    shards: Sequence[TrainingShard],
    inputs: Sequence[SpanInputs[Tensor]],
    states: Sequence[Tensor | None],
) -> list[SpanOutputs[Tensor]]:
    """Run one span on each of these shards, all at the same time.

    Args:
        inputs: without states.
        states: (T, D) that enter each span; None: what the embedding gives.

    Returns: what each span gave, differentiable once in the states that have a gradient.
    Raises: BraidError.
    """
    step = _Step(shards, inputs)
    flat = cast(tuple[Tensor, ...], _LockstepSpan.apply(step, *states))  # type: ignore[no-untyped-call]
    return step.unflatten(flat)


class _Step:
    """What one call of `run_spans` is about, for both ways."""

    def __init__(self, shards: Sequence[TrainingShard], inputs: Sequence[SpanInputs[Tensor]]) -> None:
        self.shards = shards
        self.inputs = inputs
        self.graph_ids = [f"{_RUN}-{next(_numbers)}" for _ in shards]
        self.names: list[list[str]] = []

    def forward(self, states: Sequence[Tensor | None], wants: Sequence[bool]) -> list[list[Tensor]]:
        pending = [
            shard.forward(replace(inputs, hidden=_fit(state, shard)), graph_id if wanted else "")
            for shard, inputs, state, graph_id, wanted in zip(
                self.shards, self.inputs, states, self.graph_ids, wants, strict=True
            )
        ]
        outputs = [call.result().items() for call in pending]
        self.names = [[name for name, _ in items] for items in outputs]
        return [[value for _, value in items] for items in outputs]

    def backward(
        self,
        states: Sequence[Tensor | None],
        wants: Sequence[bool],
        gradients: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        pending: list[tuple[Tensor, Pending[Tensor]] | None] = []
        given = iter(gradients)
        for shard, inputs, state, graph_id, wanted, names in zip(
            self.shards, self.inputs, states, self.graph_ids, wants, self.names, strict=True
        ):
            own = {name: gradient for name in names if (gradient := next(given)) is not None}
            if not (wanted and own and state is not None):
                pending.append(None)
                continue
            whole = replace(inputs, hidden=_fit(state, shard))
            pending.append((state, shard.backward(graph_id, SpanOutputs(**own), whole)))
        return [None if call is None else call[1].result().to(call[0]) for call in pending]

    def unflatten(self, flat: Sequence[Tensor]) -> list[SpanOutputs[Tensor]]:
        values = iter(flat)
        return [SpanOutputs(**{name: next(values) for name in names}) for names in self.names]


class _LockstepSpan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Step, *states: Tensor | None) -> tuple[Tensor, ...]:
        wants = ctx.needs_input_grad[1:]
        by_shard = step.forward(states, wants)
        ctx.step, ctx.wants = step, wants
        ctx.save_for_backward(*states)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(value for values, wanted in zip(by_shard, wants, strict=True) if not wanted for value in values)
        )
        return tuple(value for values in by_shard for value in values)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.step.backward(ctx.saved_tensors, ctx.wants, gradients))


def _fit(state_TD: Tensor | None, shard: TrainingShard) -> Tensor | None:
    """As a shard takes states."""
    if state_TD is None:
        return None
    return state_TD.detach().to("cpu", getattr(torch, shard.card.dtype))
