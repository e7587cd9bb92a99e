"""A packed batch on its way through the layers: what it may consist of and where it may go next.

Shapes: T packed rows, D width. Knows neither streams nor how room in the cache is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_rpc.errors import (
    ContextLengthError,
    FrameError,
    InvalidRequestError,
    ShapeMismatchError,
    StepOrderError,
)
from braid_rpc.steps import Segment, SpanStep
from braid_services.shard.cache import CachedAttention, CachedRows, SessionCache
from braid_services.shard.spans import SpanModel, SpanRun, check_packed


@dataclass(slots=True)
class Batch:
    """Rows of several sessions, suspended after one span until the next.

    ``lengths`` are the sessions' once the batch counts; ``layer`` is where it stands, and ``states`` (T, D) those
    there, on the model's device.
    """

    step_id: int
    sessions: list[SessionCache]
    lengths: list[int]
    num_rows: int
    num_logit_rows: int
    run: SpanRun
    layer: int = 0
    states: Tensor | None = None


def new_batch(
    spans: SpanModel, step: SpanStep[Tensor], find: Callable[[str], SessionCache], context_length: int
) -> Batch:
    """The batch that a first span describes, not started. ``find`` gives the session of an id.

    Raises: StepOrderError, ShapeMismatchError, InvalidRequestError, ContextLengthError, and what ``find`` raises.
    """
    token_ids_T = step.token_ids
    if token_ids_T is None or step.start_layer != 0 or _num_states(step):
        raise StepOrderError(
            f"step {step.step_id}: got token ids at layer {step.start_layer}, expected them at layer 0 "
            "and without hidden states"
        )
    num_rows = check_packed(token_ids_T, [segment.num_rows for segment in step.segments], spans.input_vocab)
    _check_logit_rows(step.logit_rows, num_rows)
    rows: list[CachedRows] = []
    for segment in step.segments:
        session = find(segment.session_id)
        _check_segment(segment, session, context_length)
        rows.append(CachedRows(session, segment.position, segment.num_rows))
    sessions = [part.session for part in rows]
    if len(set(sessions)) != len(sessions):
        names = [segment.session_id for segment in step.segments]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequestError(f"session {twice!r}: expected once per batch, got it twice")
    check_end(step, sessions, spans.num_layers)
    wants_all_rows = step.logit_rows == tuple(range(num_rows))
    run = SpanRun(
        spans,
        token_ids_T.to(spans.device),
        _positions(step.segments).to(spans.device),
        None if wants_all_rows else torch.tensor(step.logit_rows, dtype=torch.long, device=spans.device),
        CachedAttention(rows),
    )
    lengths = [part.position + part.num_rows for part in rows]
    return Batch(step.step_id, sessions, lengths, num_rows, len(step.logit_rows), run)


def check_follows(step: SpanStep[Tensor], batch: Batch | None) -> Batch:
    """The batch that a later span goes on with. Raises: StepOrderError if it does not follow the one before."""
    if batch is None:
        raise StepOrderError(
            f"step {step.step_id}, layers {step.start_layer} to {step.end_layer}: no batch is under way, "
            "expected a first span with token ids"
        )
    if (step.step_id, step.start_layer) != (batch.step_id, batch.layer):
        raise StepOrderError(
            f"got step {step.step_id} from layer {step.start_layer}, "
            f"expected step {batch.step_id} from layer {batch.layer}"
        )
    if step.segments or step.logit_rows:
        raise StepOrderError(f"step {step.step_id}: segments and logit rows belong to a batch's first span")
    return batch


def check_end(step: SpanStep[Tensor], sessions: Sequence[SessionCache], num_layers: int) -> None:
    """Raises: StepOrderError if a span ends where its sessions cannot, or is final where they must go on."""
    if not step.start_layer <= step.end_layer <= num_layers:
        raise StepOrderError(
            f"step {step.step_id}: got layers {step.start_layer} to {step.end_layer}, expected an end in "
            f"[{step.start_layer}, {num_layers}]"
        )
    lowest = min(session.end_layer for session in sessions)
    if step.end_layer > lowest:
        raise StepOrderError(
            f"step {step.step_id}: got a span to layer {step.end_layer}, but a session was opened to "
            f"run to layer {lowest} only"
        )
    if step.final:
        highest = max(session.end_layer for session in sessions)
        if step.end_layer != highest:
            raise StepOrderError(
                f"step {step.step_id}: got the final span at layer {step.end_layer}, but a session was "
                f"opened to run to layer {highest}, and layers left out would have no keys and values"
            )


def next_states(step: SpanStep[Tensor], batch: Batch, spans: SpanModel) -> Tensor:
    """What a later span goes on with, on the model's device.

    Raises: StepOrderError, ShapeMismatchError, FrameError.
    """
    own_TD = batch.states
    if _num_states(step) != 1 or own_TD is None:
        raise StepOrderError(
            f"step {step.step_id}: a span from layer {step.start_layer} needs hidden states: itself, an update, "
            "or unchanged, and only one of them"
        )
    if step.unchanged:
        return own_TD
    if step.hidden is not None:
        _check_states("hidden", step.step_id, step.hidden, own_TD)
        if step.hidden.dtype != spans.dtype:
            raise FrameError(
                f"step {step.step_id}: hidden has dtype {step.hidden.dtype}, expected {spans.dtype}"
            )
        return step.hidden.to(spans.device)
    update_TD = step.update
    if update_TD is None or not update_TD.is_floating_point():
        raise FrameError(f"step {step.step_id}: got an update that is not of floats, expected floats")
    _check_states("update", step.step_id, update_TD, own_TD)
    # In the wider of the two, so that neither loses its precision before they meet.
    dtype = torch.promote_types(update_TD.dtype, spans.dtype)
    return (own_TD.to(dtype) + update_TD.to(spans.device, dtype)).to(spans.dtype)


def _num_states(step: SpanStep[Tensor]) -> int:
    return (step.hidden is not None) + (step.update is not None) + step.unchanged


def _check_states(what: str, step_id: int, got_TD: Tensor, own_TD: Tensor) -> None:
    if got_TD.shape != own_TD.shape:
        raise ShapeMismatchError(
            f"step {step_id}: {what} has shape {tuple(got_TD.shape)}, expected {tuple(own_TD.shape)}"
        )


def check_result_size(
    step: SpanStep[Tensor], batch: Batch, spans: SpanModel, max_result_bytes: int | None
) -> None:
    """Raises: FrameError if the states and logits that a span would give are more than the caller can take."""
    if max_result_bytes is None:
        return
    rows, columns = batch.num_rows, spans.width
    if step.end_layer == spans.num_layers:
        rows, columns = batch.num_logit_rows, spans.width + spans.vocab_size
    num_bytes = rows * columns * spans.dtype.itemsize
    if num_bytes > max_result_bytes:
        raise FrameError(
            f"step {step.step_id}: {rows} rows to layer {step.end_layer} would give {num_bytes} bytes, "
            f"expected at most {max_result_bytes} in one message; ask for fewer rows at a time"
        )


def is_repeat(step: SpanStep[Tensor], last: SpanStep[Tensor]) -> bool:
    """Whether two steps are one and the same, sent twice."""
    return (
        (step.step_id, step.start_layer, step.end_layer, step.final)
        == (last.step_id, last.start_layer, last.end_layer, last.final)
        and (step.segments, step.logit_rows) == (last.segments, last.logit_rows)
        and _same(step.token_ids, last.token_ids)
        and (_same(step.hidden, last.hidden) and _same(step.update, last.update))
        and step.unchanged == last.unchanged
    )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or (one.dtype == other.dtype and torch.equal(one, other))


def _check_logit_rows(logit_rows: Sequence[int], num_rows: int) -> None:
    before = -1
    for row in logit_rows:
        if not before < row < num_rows:
            raise InvalidRequestError(
                f"logit_rows: got {row} after {before}, expected different rows of [0, {num_rows}) in order"
                if before >= 0
                else f"logit_rows: got {row}, expected rows of [0, {num_rows})"
            )
        before = row


def _check_segment(segment: Segment, session: SessionCache, context_length: int) -> None:
    if segment.position != session.length:
        raise StepOrderError(
            f"session {segment.session_id!r}: got rows from position {segment.position}, "
            f"expected {session.length}; crop() rolls back"
        )
    length = segment.position + segment.num_rows
    if length > context_length:
        raise ContextLengthError(
            f"session {segment.session_id!r}: got {length} tokens, expected at most {context_length}"
        )


def _positions(segments: Sequence[Segment]) -> Tensor:
    if all(segment.num_rows == 1 for segment in segments):
        return torch.tensor([segment.position for segment in segments])
    return torch.cat([torch.arange(s.position, s.position + s.num_rows) for s in segments])
