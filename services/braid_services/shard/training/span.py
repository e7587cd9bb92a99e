"""One span over whole sequences, by itself: the layers before it are passed over, those behind it never run.

Shapes: T packed rows, R logit rows, D width, V vocabulary. Differentiable in the states that enter the span.
Knows no sessions, no wire, and not who keeps the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from braid_fusion.mixing import log_probabilities, logit_features
from braid_rpc.errors import (
    ContextLengthError,
    FrameError,
    InvalidRequestError,
    ShapeMismatchError,
    StepOrderError,
)
from braid_rpc.training import HeadInputs, SpanInputs, SpanOutputs
from braid_services.shard.attention import WholeSequences
from braid_services.shard.spans import SpanModel, SpanRun, check_packed


def check_inputs(
    spans: SpanModel,
    inputs: SpanInputs[Tensor],
    context_length: int,
    max_result_bytes: int | None = None,
) -> None:
    """``max_result_bytes``: what its states, or what the span gives, may take at most.

    Raises: StepOrderError, ContextLengthError, ShapeMismatchError, FrameError, InvalidRequestError.
    """
    start, end, last = inputs.start_layer, inputs.end_layer, spans.num_layers
    if not 0 <= start <= end <= last:
        raise StepOrderError(f"span: got layers {start} to {end}, expected within [0, {last}]")
    if (inputs.head is not None) != (end == last):
        got = "without the head" if inputs.head is None else "with the head"
        raise StepOrderError(
            f"span: got layers {start} to {end} {got}, expected it at the end of the last layer, {last}, only"
        )
    if inputs.hidden is None and start != 0:
        raise StepOrderError(f"span: got no states to enter layer {start}, expected (T, {spans.width})")
    num_rows = check_packed(inputs.token_ids, inputs.lengths, spans.input_vocab)
    if max(inputs.lengths) > context_length:
        raise ContextLengthError(f"span: got {max(inputs.lengths)} tokens, expected at most {context_length}")
    if inputs.hidden is not None:
        if inputs.hidden.shape != (num_rows, spans.width):
            raise ShapeMismatchError(
                f"span: hidden: got {tuple(inputs.hidden.shape)}, expected {(num_rows, spans.width)}"
            )
        if inputs.hidden.dtype != spans.dtype:
            raise FrameError(f"span: hidden: got {inputs.hidden.dtype}, expected {spans.dtype}")
    _check_size("states", num_rows, spans.width, spans, max_result_bytes, "max_message_bytes")
    if inputs.head is not None:
        num_logit_rows = _check_head(inputs.head, num_rows, spans.vocab_size)
        if inputs.head.want_logits:
            width = spans.width + spans.vocab_size
            _check_size(
                "states and logits", num_logit_rows, width, spans, max_result_bytes, "max_message_bytes"
            )


def check_logits(spans: SpanModel, num_rows: int, max_bytes: int, turn_rows: int) -> None:
    """Whether the logits of so many rows may be there at once: they take no more than ``max_bytes``, or than those of
    ``turn_rows`` rows. Raises: FrameError.
    """
    limit = max(max_bytes, turn_rows * spans.vocab_size * spans.dtype.itemsize)
    _check_size("logits", num_rows, spans.vocab_size, spans, limit, "training_bytes")


def _check_size(
    what: str, num_rows: int, width: int, spans: SpanModel, limit: int | None, setting: str
) -> None:
    num_bytes = num_rows * width * spans.dtype.itemsize
    if limit is not None and num_bytes > limit:
        raise FrameError(
            f"span: {what} of {num_rows} rows take {num_bytes} bytes, expected at most {limit}; send fewer "
            f"sequences at a time (--batch), or let the shard have a larger {setting}"
        )


def _check_head(head: HeadInputs[Tensor], num_rows: int, vocab_size: int) -> int:
    """How many logit rows there are."""
    if not 0 <= head.vocab_size <= vocab_size:
        raise InvalidRequestError(f"head: vocab_size: got {head.vocab_size}, expected [0, {vocab_size}]")
    if head.logit_rows is not None:
        _check_ids("logit_rows", head.logit_rows, num_rows)
        num_rows = head.logit_rows.shape[0]
    if head.targets is not None:
        if head.targets.shape != (num_rows,):
            raise ShapeMismatchError(
                f"head: targets: got {tuple(head.targets.shape)}, expected ({num_rows},), one per logit row"
            )
        _check_ids("targets", head.targets, head.vocab_size or vocab_size)
    return num_rows


def _check_ids(what: str, ids: Tensor, limit: int) -> None:
    if ids.dim() != 1 or ids.dtype != torch.int64:
        raise ShapeMismatchError(
            f"head: {what}: got {ids.dtype} {tuple(ids.shape)}, expected int64 of one axis"
        )
    if ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= limit:
            raise InvalidRequestError(f"head: {what}: got values from {low} to {high}, expected [0, {limit})")


def run_span(
    spans: SpanModel, inputs: SpanInputs[Tensor], hidden_TD: Tensor | None = None
) -> SpanOutputs[Tensor]:
    """Run a span that `check_inputs` accepts, from ``hidden_TD`` in place of the inputs' own states where given.

    All results are on the model's device. The caller holds the model's lock.
    """
    device = spans.device
    hidden_TD = inputs.hidden if hidden_TD is None else hidden_TD
    positions_T = torch.cat([torch.arange(length, device=device) for length in inputs.lengths])
    head = inputs.head
    rows_R = None if head is None or head.logit_rows is None else head.logit_rows.to(device)
    run = SpanRun(
        spans, inputs.token_ids.to(device), positions_T, rows_R, WholeSequences(list(inputs.lengths))
    )
    try:
        if hidden_TD is not None:
            hidden_TD = hidden_TD.to(device)
            run.begin_at(inputs.start_layer)
        if head is None:
            return SpanOutputs(run.advance(inputs.end_layer, hidden_TD))
        return _head_outputs(head, *run.finish(hidden_TD))
    finally:
        run.drop()


def _head_outputs(head: HeadInputs[Tensor], head_input_RD: Tensor, logits_RV: Tensor) -> SpanOutputs[Tensor]:
    target_logprobs_R = features_RN = None
    if head.targets is not None or head.want_features:
        log_p_RV = log_probabilities(logits_RV[:, : head.vocab_size] if head.vocab_size else logits_RV)
        if head.targets is not None:
            target_logprobs_R = log_p_RV.gather(1, head.targets.to(log_p_RV.device)[:, None])[:, 0]
        if head.want_features:
            features_RN = logit_features([log_p_RV], normalised=True)[:, 0]
    return SpanOutputs(head_input_RD, target_logprobs_R, features_RN, logits_RV if head.want_logits else None)
