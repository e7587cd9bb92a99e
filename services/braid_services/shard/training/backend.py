"""A shard's part in training: spans forward and backward for anyone who asks, beside those who are served.

Shapes: T packed rows, R logit rows, D width. Knows torch and no network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from braid_rpc.errors import InvalidRequestError, ShapeMismatchError, UnsupportedModelError
from braid_rpc.steps import Timings
from braid_rpc.training import BackwardResult, ForwardResult, SpanInputs, SpanOutputs
from braid_services.shard.config import ShardConfig
from braid_services.shard.spans import SpanModel
from braid_services.shard.training.graphs import GroupGraph, KeptGraphs, SavedBytes, SpanGraph
from braid_services.shard.training.groups import Group, join, make_groups, num_rows_given
from braid_services.shard.training.probing import why_not_backward
from braid_services.shard.training.span import check_inputs, check_logits, run_span
from braid_services.shard.turns import always_wanted

ResultT = TypeVar("ResultT")


class ShardTraining:
    """Stateless but for the graphs that it keeps, which cost only time when they are gone. Safe for threads.

    ``no_backward`` says why there is no backward; empty: there is. ``check_wanted`` of the calls is called now and
    then while they wait for a turn, and before anything is kept, and may raise.
    """

    def __init__(self, spans: SpanModel, config: ShardConfig, context_length: int, model_hash: str) -> None:
        self._spans = spans
        self._context_length = context_length
        self._model_hash = model_hash
        self._name = config.name
        self.graphs = KeptGraphs(config.training_bytes, config.training_ttl_s)
        self._share = config.training_share
        self._turn_rows = config.training_turn_rows
        tensors = [*spans.model.parameters(), *spans.model.buffers()]
        self._weights = frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)
        self.no_backward = "its training_share is 0" if not self._share else why_not_backward(spans)

    def forward(
        self,
        inputs: SpanInputs[Tensor],
        graph_id: str = "",
        max_result_bytes: int | None = None,
        check_wanted: Callable[[], None] = always_wanted,
    ) -> ForwardResult[Tensor]:
        """Run a span; its results are on the CPU and without history. With a ``graph_id``, `backward` can follow.

        Raises: UnsupportedModelError from a shard that refuses training, or one without backward if there is a
            ``graph_id``; what `check_inputs` and `check_logits` raise.
        """
        wants_graph = bool(graph_id) and inputs.hidden is not None
        if not self._share or wants_graph:
            self._check_supported()
        groups = self._groups(inputs, max_result_bytes)
        num_rows = num_rows_given(inputs)
        saved = SavedBytes(self._weights)
        graphs: list[GroupGraph] = []

        def run(group: Group) -> SpanOutputs[Tensor]:
            if not wants_graph:
                with torch.no_grad():
                    return _result(run_span(self._spans, group.inputs))
            graphs.append(self._run(group, saved))
            outputs = _result(graphs[-1].outputs)
            if saved.num_bytes > self.graphs.max_bytes:
                graphs.clear()  # there is no room to keep them: a group's at a time is enough
            return outputs

        asked_s = time.perf_counter()
        with self._spans.training_turns.call():
            parts, compute_s = self._in_turns([partial(run, group) for group in groups], check_wanted)
            found = join(parts, groups, num_rows)
            if wants_graph:
                check_wanted()
                self.graphs.keep(graph_id, SpanGraph(graphs, num_rows, saved.num_bytes))
        timings = Timings(compute_s=compute_s, wait_s=time.perf_counter() - asked_s - compute_s)
        return ForwardResult(found, self._model_hash, timings)

    def backward(
        self,
        graph_id: str,
        gradients: SpanOutputs[Tensor],
        inputs: SpanInputs[Tensor] | None = None,
        check_wanted: Callable[[], None] = always_wanted,
    ) -> BackwardResult[Tensor]:
        """The gradient of the states that entered a span, (T, D), from those of what it gave; frees its graph.

        Args:
            inputs: of the span, where its graph is gone; it is run again. Without them the result says that it is.

        Raises: UnsupportedModelError without backward; ShapeMismatchError, InvalidRequestError for gradients of
            what the span does not give; what `check_inputs` and `check_logits` raise.
        """
        self._check_supported()
        groups: list[Group] = []
        if inputs is not None:
            groups = self._groups(inputs)
            if inputs.hidden is None:
                raise InvalidRequestError("backward: got a span from the embedding, which has no gradient")
        asked_s = time.perf_counter()
        with self._spans.training_turns.call():
            graph = self.graphs.take(graph_id)
            if graph is not None:
                pieces = [partial(_backward, group, gradients, graph.num_rows) for group in graph.groups]
            elif inputs is not None:
                num_rows = num_rows_given(inputs)
                pieces = [partial(self._run_back, group, gradients, num_rows) for group in groups]
            else:
                return BackwardResult(None, self._model_hash)
            parts, compute_s = self._in_turns(pieces, check_wanted)
        timings = Timings(compute_s=compute_s, wait_s=time.perf_counter() - asked_s - compute_s)
        return BackwardResult(torch.cat(parts), self._model_hash, timings)

    def _in_turns(
        self, pieces: Sequence[Callable[[], ResultT]], check_wanted: Callable[[], None]
    ) -> tuple[list[ResultT], float]:
        """What the pieces of a call give, each done in a turn of its own, and the seconds that they took together."""
        results: list[ResultT] = []
        compute_s = 0.0
        for piece in pieces:
            with self._spans.training_turns.turn(self._share, check_wanted, len(pieces)):
                began_s = time.perf_counter()
                results.append(piece())
                compute_s += time.perf_counter() - began_s
        return results, compute_s

    def _groups(self, inputs: SpanInputs[Tensor], max_result_bytes: int | None = None) -> list[Group]:
        """What a call's turns run; checked."""
        check_inputs(self._spans, inputs, self._context_length, max_result_bytes)
        groups = make_groups(inputs, self._turn_rows)
        if inputs.head is not None:
            # Logits that nobody asks for are gone with their turn.
            at_once = [inputs] if inputs.head.want_logits else [group.inputs for group in groups]
            num_rows = max(num_rows_given(one) for one in at_once)
            turn_rows = max(self._turn_rows, *inputs.lengths)
            check_logits(self._spans, num_rows, self.graphs.max_bytes, turn_rows)
        return groups

    def _run(self, group: Group, saved: SavedBytes) -> GroupGraph:
        if group.inputs.hidden is None:
            raise RuntimeError("a graph was asked for of a span from the embedding")
        leaf_TD = group.inputs.hidden.detach().to(self._spans.device).requires_grad_()
        with torch.enable_grad(), saved.counting():
            outputs = run_span(self._spans, group.inputs, leaf_TD)
        for tensor in (leaf_TD, *(value for _, value in outputs.items())):
            saved.note(tensor)
        return GroupGraph(leaf_TD, outputs, group.rows)

    def _run_back(self, group: Group, gradients: SpanOutputs[Tensor], num_rows: int) -> Tensor:
        return _backward(self._run(group, SavedBytes(self._weights)), gradients, num_rows)

    def _check_supported(self) -> None:
        if self.no_backward:
            raise UnsupportedModelError(
                f"shard {self._name!r}: cannot take part in training: {self.no_backward}"
            )


def _result(outputs: SpanOutputs[Tensor]) -> SpanOutputs[Tensor]:
    return SpanOutputs(**{name: value.detach().cpu() for name, value in outputs.items()})


def _backward(graph: GroupGraph, gradients: SpanOutputs[Tensor], num_rows: int) -> Tensor:
    """The gradient of the states that entered a group, from those of all ``num_rows`` rows that its call gave."""
    given = gradients.items()
    if not given:
        raise InvalidRequestError("backward: got no gradients, expected one at least")
    outputs, wanted = [], []
    for name, gradient in given:
        output: Tensor | None = getattr(graph.outputs, name)
        if output is None:
            raise InvalidRequestError(f"backward: got a gradient of {name}, which the span did not give")
        expected = (num_rows, *output.shape[1:])
        if gradient.shape != expected:
            raise ShapeMismatchError(f"backward: {name}: got {tuple(gradient.shape)}, expected {expected}")
        outputs.append(output)
        wanted.append(gradient[graph.rows].to(output))
    (hidden_TD,) = torch.autograd.grad(outputs, [graph.hidden_TD], wanted)
    return hidden_TD.cpu()
