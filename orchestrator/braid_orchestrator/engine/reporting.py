"""Turns the scores of a step into events for the user, and ends requests. Knows no shards and no scheduling."""

from __future__ import annotations

import logging

import torch

from braid_orchestrator.engine.packing import Work
from braid_orchestrator.engine.readout import Scores
from braid_orchestrator.engine.requests import Event, Finished, ScoreResult, TopLogprob
from braid_orchestrator.engine.sessions import GeneratedSequence, Request, ScoredSequence
from braid_orchestrator.engine.text import TextCodec
from braid_rpc.errors import BraidError

_log = logging.getLogger(__name__)


def report(work: Work, scores: Scores | None, rows: slice, shard_names: list[str], text: TextCodec) -> bool:
    """Use a work's rows of the scores. True if its sequence is complete. Raises: BraidError of this sequence."""
    sequence = work.sequence
    if isinstance(sequence, ScoredSequence):
        if scores is not None and rows.start < rows.stop:
            _collect(sequence, work, scores, rows)
        return _finish_score(sequence, text)
    if scores is None or rows.start == rows.stop or not isinstance(sequence, GeneratedSequence):
        return False
    row_V = scores.scores[rows.start]
    told = None
    if sequence.watch is not None:
        told = sequence.watch.observe(row_V, scores.row_metrics.get(rows.start, {}))
    pick = sequence.sampler.pick(row_V, None if told is None else told.temperature)
    weights = dict(zip(shard_names, scores.weights[rows.start].tolist(), strict=True))
    event, finished = sequence.extend(pick, weights, text, told)
    request = sequence.request
    emit(request, event)
    if finished is None:
        return False
    emit(request, finished)
    request.unfinished -= 1
    if request.unfinished == 0:
        emit(request, Finished(request.prompt_tokens, request.completion_tokens, request.timings()))
        request.ended = True
    return True


def fail(request: Request, error: BraidError) -> None:
    """End a request with an error, once."""
    if not request.ended:
        request.ended = True
        emit(request, error)


def _collect(sequence: ScoredSequence, work: Work, scores: Scores, rows: slice) -> None:
    first = sequence.num_cached - work.num_rows + work.logit_rows.start + 1
    targets = torch.tensor(sequence.token_ids[first : first + len(work.logit_rows)])
    logprobs = torch.log_softmax(scores.scores[rows].float(), dim=-1)
    sequence.logprobs.extend(logprobs.gather(1, targets[:, None])[:, 0].tolist())
    if sequence.num_top:
        values, ids = logprobs.topk(min(sequence.num_top, logprobs.shape[-1]))
        rows_of_top = zip(ids.tolist(), values.tolist(), strict=True)
        sequence.top.extend([*zip(*row, strict=True)] for row in rows_of_top)


def _finish_score(sequence: ScoredSequence, text: TextCodec) -> bool:
    if len(sequence.logprobs) < len(sequence.token_ids):
        return False
    emit(
        sequence.request,
        ScoreResult(
            token_ids=tuple(sequence.token_ids),
            tokens=tuple(text.token_name(token_id) for token_id in sequence.token_ids),
            logprobs=tuple(sequence.logprobs),
            num_bytes=sequence.num_bytes,
            top_logprobs=tuple(
                tuple(TopLogprob(token_id, text.token_name(token_id), logprob) for token_id, logprob in row)
                for row in (sequence.top if sequence.num_top else ())
            ),
        ),
    )
    sequence.request.ended = True
    return True


def emit(request: Request, item: Event | ScoreResult | BraidError) -> None:
    """Give a user an item. A sink that fails (its event loop is gone, say) means that nobody listens any more."""
    try:
        request.sink(item)
    except Exception:  # noqa: BLE001 - whatever it is, generating for nobody is pointless
        _log.warning(
            "nobody takes a request's events any more",
            extra={"request_id": request.request_id},
            exc_info=True,
        )
        request.cancelled = True
