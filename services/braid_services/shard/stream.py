"""One caller's sessions and steps on a shard: what may follow what, and what it leaves behind.

Shapes: T packed rows, D width, R logit rows, V vocabulary. Knows neither the wire nor how a span is run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from braid_rpc.errors import (
    ConflictError,
    ContextLengthError,
    FrameError,
    InvalidRequestError,
    ShapeMismatchError,
    StepOrderError,
    UnknownSessionError,
)
from braid_rpc.steps import OpenSession, Segment, SpanResult, SpanStep, Timings
from braid_services.shard.cache import CachedAttention, CachedRows, Resize, SessionCache
from braid_services.shard.spans import SpanRun, check_packed

if TYPE_CHECKING:
    from braid_services.shard.backend import ShardBackend


@dataclass(slots=True)
class _Batch:
    """A packed batch under way: suspended after its first span until its final one."""

    step_id: int
    sessions: list[SessionCache]
    lengths: list[int]  # of the sessions once this batch counts
    before: list[Resize]  # the blocks each had before this batch
    num_rows: int
    run: SpanRun
    layer: int = 0


class ShardStream:
    """One caller's view of a shard. Sessions belong to it: their ids are its own, and `end` frees them all.

    All calls come from one thread; other streams may work on other threads at the same time. Every refused
    call leaves everything as it was.
    """

    def __init__(self, backend: ShardBackend) -> None:
        self._backend = backend
        self._pool = backend.pool
        self._lock = backend.spans.lock
        self._sessions: dict[str, SessionCache] = {}
        self._batch: _Batch | None = None
        self._last_step_id = -1
        self._last_key: tuple[int, int, int, bool] | None = None
        self._last_result: SpanResult[Tensor] | None = None
        self._is_ended = False
        self._thread = 0

    def open(self, sessions: Sequence[OpenSession]) -> int:
        """Open all or none; returns the cache bytes still free.

        Raises: InvalidRequestError for an id in use or an end layer out of range; ContextLengthError;
        CacheFullError.
        """
        num_layers, context_length = self._backend.spans.num_layers, self._backend.context_length
        with self._lock:
            self._refuse_if_ended()
            self._pool.evict_idle()
            self._sessions = {name: session for name, session in self._sessions.items() if session.is_open}
            seen = set(self._sessions)
            for session in sessions:
                if not session.session_id or session.session_id in seen:
                    raise InvalidRequestError(
                        f"session {session.session_id!r}: expected an id not in use yet"
                    )
                seen.add(session.session_id)
                if not 0 <= session.end_layer <= num_layers:
                    raise InvalidRequestError(
                        f"session {session.session_id!r}: got end_layer {session.end_layer}, "
                        f"expected [0, {num_layers}]"
                    )
                if not 0 <= session.num_tokens <= context_length:
                    raise ContextLengthError(
                        f"session {session.session_id!r}: got {session.num_tokens} tokens, "
                        f"expected at most {context_length}"
                    )
            caches = self._pool.open([(s.num_tokens, s.end_layer or num_layers) for s in sessions])
            self._sessions.update((s.session_id, cache) for s, cache in zip(sessions, caches, strict=True))
            self._backend.watch_idle_sessions()
            return self._pool.bytes_free

    def step(self, step: SpanStep[Tensor]) -> SpanResult[Tensor]:
        """Run one span of a packed batch, as `braid_rpc.steps.SpanStep` describes.

        The last step repeated under its id gives its result again. A new batch gives up a suspended one.
        Raises: StepOrderError, UnknownSessionError, ShapeMismatchError, FrameError, InvalidRequestError,
        ContextLengthError, CacheFullError.
        """
        asked_s = time.perf_counter()
        with self._lock, torch.inference_mode():
            started_s = time.perf_counter()
            self._refuse_if_ended()
            self._pool.evict_idle()
            is_first = step.token_ids is not None
            is_empty_later = not is_first and step.start_layer == step.end_layer
            key = (step.step_id, step.start_layer, step.end_layer, is_first)
            if (
                key == self._last_key
                and self._last_result is not None
                and not (is_empty_later and self._batch)
            ):
                return self._last_result
            result = self._begin(step) if is_first else self._go_on(step)
            timings = Timings(compute_s=time.perf_counter() - started_s, wait_s=started_s - asked_s)
            result = replace(result, timings=timings, cache_bytes_free=self._pool.bytes_free)
            self._last_key, self._last_result = key, result
            return result

    def crop(self, session_id: str, length: int) -> int:
        """Forget a session's positions from ``length`` on; returns the cache bytes free.

        Gives up a suspended batch that the session is part of.
        Raises: UnknownSessionError, InvalidRequestError.
        """
        with self._lock:
            session = self._session(session_id)
            if not 0 <= length <= session.length:
                raise InvalidRequestError(
                    f"session {session_id!r}: got length {length}, expected [0, {session.length}]"
                )
            self._give_up_batch_of([session])
            self._pool.crop(session, length)
            return self._pool.bytes_free

    def close(self, session_ids: Sequence[str]) -> int:
        """Free the sessions' caches; returns the cache bytes free. Unknown ids are passed over."""
        with self._lock:
            closed = [
                self._sessions.pop(name) for name in dict.fromkeys(session_ids) if name in self._sessions
            ]
            self._give_up_batch_of(closed)
            self._pool.close(closed)
            return self._pool.bytes_free

    def end(self) -> None:
        """Free everything; the stream is not used again. Harmless when repeated, and on any thread."""
        with self._lock:
            self._is_ended = True
            self._give_up_batch()
            self._pool.close(self._sessions.values())
            self._sessions.clear()
            self._last_key = self._last_result = None

    def _begin(self, step: SpanStep[Tensor]) -> SpanResult[Tensor]:
        if step.start_layer != 0 or step.hidden is not None:
            raise StepOrderError(
                f"step {step.step_id}: got token ids at layer {step.start_layer}, expected them at layer 0 "
                "and without hidden states"
            )
        if step.step_id <= self._last_step_id:
            raise StepOrderError(f"step {step.step_id}: expected an id above the last, {self._last_step_id}")
        batch = self._new_batch(step)
        self._check_end(step, batch.sessions)
        undone = self._batch.before if self._batch else ()
        wanted = [
            Resize(session, max(session_blocks, self._pool.num_blocks(length)))
            for session, session_blocks, length in zip(
                batch.sessions, (r.num_blocks for r in batch.before), batch.lengths, strict=True
            )
        ]
        self._pool.resize(wanted, instead_of=undone)
        if self._batch:
            self._batch.run.drop()
        self._batch = batch
        self._last_step_id = step.step_id
        return self._run_span(batch, step, None)

    def _go_on(self, step: SpanStep[Tensor]) -> SpanResult[Tensor]:
        batch = self._batch
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
            raise StepOrderError(
                f"step {step.step_id}: segments and logit rows belong to a batch's first span"
            )
        if not all(session.is_open for session in batch.sessions):
            self._give_up_batch()
            raise UnknownSessionError(
                f"step {step.step_id}: a session of this batch was evicted while it waited"
            )
        hidden_TD = self._checked_hidden(step, batch)
        self._check_end(step, batch.sessions)
        return self._run_span(batch, step, hidden_TD)

    def _run_span(
        self, batch: _Batch, step: SpanStep[Tensor], hidden_TD: Tensor | None
    ) -> SpanResult[Tensor]:
        is_last = step.end_layer == self._backend.spans.num_layers
        try:
            if is_last:
                head_input_RD, logits_RV = batch.run.finish(hidden_TD)
                result = SpanResult(hidden=head_input_RD.cpu(), logits=logits_RV.cpu())
            else:
                result = SpanResult(hidden=batch.run.advance(step.end_layer, hidden_TD).cpu())
        except BaseException:
            self._give_up_batch()
            raise
        batch.layer = step.end_layer
        if step.final:
            for session, length in zip(batch.sessions, batch.lengths, strict=True):
                session.length = length
            self._batch = None
            batch.run.drop()
        elif is_last:
            self._give_up_batch()
        self._pool.touch(batch.sessions)
        return result

    def _new_batch(self, step: SpanStep[Tensor]) -> _Batch:
        spans, token_ids_T = self._backend.spans, step.token_ids
        if token_ids_T is None:
            raise StepOrderError(f"step {step.step_id}: a batch's first span needs token ids")
        num_rows = check_packed(
            token_ids_T, [segment.num_rows for segment in step.segments], spans.input_vocab
        )
        if not all(0 <= row < num_rows for row in step.logit_rows):
            raise InvalidRequestError(
                f"logit_rows: got {list(step.logit_rows)}, expected rows of [0, {num_rows})"
            )
        sessions, rows, start = [], [], 0
        for segment in step.segments:
            session = self._checked_session(segment)
            if session in sessions:
                raise InvalidRequestError(
                    f"session {segment.session_id!r}: expected once per batch, got it twice"
                )
            sessions.append(session)
            rows.append(CachedRows(session, segment.position, start, segment.num_rows))
            start += segment.num_rows
        all_rows = step.logit_rows == tuple(range(num_rows))
        undone = {id(r.session): r.num_blocks for r in self._batch.before} if self._batch else {}
        run = SpanRun(
            spans,
            token_ids_T.to(spans.device),
            _positions(step.segments).to(spans.device),
            None if all_rows else torch.tensor(step.logit_rows, dtype=torch.long, device=spans.device),
            CachedAttention(rows),
        )
        return _Batch(
            step_id=step.step_id,
            sessions=sessions,
            lengths=[segment.position + segment.num_rows for segment in step.segments],
            before=[Resize(session, undone.get(id(session), session.num_blocks)) for session in sessions],
            num_rows=num_rows,
            run=run,
        )

    def _checked_session(self, segment: Segment) -> SessionCache:
        session = self._session(segment.session_id)
        if segment.position != session.length:
            raise StepOrderError(
                f"session {segment.session_id!r}: got rows from position {segment.position}, "
                f"expected {session.length}; crop() rolls back"
            )
        length = segment.position + segment.num_rows
        if length > self._backend.context_length:
            raise ContextLengthError(
                f"session {segment.session_id!r}: got {length} tokens, "
                f"expected at most {self._backend.context_length}"
            )
        return session

    def _check_end(self, step: SpanStep[Tensor], sessions: Sequence[SessionCache]) -> None:
        num_layers = self._backend.spans.num_layers
        if not step.start_layer <= step.end_layer <= num_layers:
            raise StepOrderError(
                f"step {step.step_id}: got layers {step.start_layer} to {step.end_layer}, expected an end in "
                f"[{step.start_layer}, {num_layers}]"
            )
        lowest, highest = min(s.end_layer for s in sessions), max(s.end_layer for s in sessions)
        if step.end_layer > lowest:
            raise StepOrderError(
                f"step {step.step_id}: got a span to layer {step.end_layer}, but a session was opened to "
                f"run to layer {lowest} only"
            )
        if step.final and step.end_layer != highest:
            raise StepOrderError(
                f"step {step.step_id}: got the final span at layer {step.end_layer}, but a session was "
                f"opened to run to layer {highest}, and layers left out would have no keys and values"
            )

    def _checked_hidden(self, step: SpanStep[Tensor], batch: _Batch) -> Tensor:
        spans, hidden_TD = self._backend.spans, step.hidden
        if hidden_TD is None:
            raise StepOrderError(
                f"step {step.step_id}: a span from layer {step.start_layer} needs hidden states"
            )
        if hidden_TD.shape != (batch.num_rows, spans.width):
            raise ShapeMismatchError(
                f"step {step.step_id}: hidden has shape {tuple(hidden_TD.shape)}, "
                f"expected {(batch.num_rows, spans.width)}"
            )
        if hidden_TD.dtype != spans.dtype:
            raise FrameError(
                f"step {step.step_id}: hidden has dtype {hidden_TD.dtype}, expected {spans.dtype}"
            )
        return hidden_TD.to(spans.device)

    def _session(self, session_id: str) -> SessionCache:
        self._refuse_if_ended()
        session = self._sessions.get(session_id)
        if session is None or not session.is_open:
            raise UnknownSessionError(
                f"session {session_id!r}: not open on this stream (never, closed or evicted)"
            )
        return session

    def _give_up_batch_of(self, sessions: Sequence[SessionCache]) -> None:
        if self._batch and any(session in sessions for session in self._batch.sessions):
            self._give_up_batch()

    def _give_up_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch:
            batch.run.drop()
            self._pool.resize(batch.before)

    def _refuse_if_ended(self) -> None:
        if self._is_ended:
            raise ConflictError("the stream has ended; open another one")
        if threading.get_ident() != self._thread:
            if self._thread and self._batch:
                raise ConflictError("a shard stream with a batch under way was used from another thread")
            self._thread = threading.get_ident()


def _positions(segments: Sequence[Segment]) -> Tensor:
    if all(segment.num_rows == 1 for segment in segments):
        return torch.tensor([segment.position for segment in segments])
    return torch.cat([torch.arange(s.position, s.position + s.num_rows) for s in segments])
