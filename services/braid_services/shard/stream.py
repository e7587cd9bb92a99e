"""One caller's sessions and steps on a shard: what may follow what, and what it leaves behind.

Knows neither the wire nor how a span is run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from braid_rpc.errors import (
    ConflictError,
    ContextLengthError,
    InvalidRequestError,
    StepOrderError,
    UnknownSessionError,
)
from braid_rpc.steps import OpenSession, SpanResult, SpanStep, Timings
from braid_services.shard.batch import (
    Batch,
    check_end,
    check_follows,
    check_result_size,
    is_repeat,
    new_batch,
    next_states,
)
from braid_services.shard.cache import Resize, SessionCache

if TYPE_CHECKING:
    from braid_services.shard.backend import ShardBackend


class ShardStream:
    """One caller's view of a shard. Sessions belong to it: their ids are its own, and `end` frees them all.

    All calls come from one thread; other streams may work on other threads at the same time. Every refused
    call leaves everything as it was. A span that would give more than ``max_result_bytes`` is refused.
    """

    def __init__(self, backend: ShardBackend, max_result_bytes: int | None = None) -> None:
        self._backend = backend
        self._max_result_bytes = max_result_bytes
        self._spans = backend.spans
        self._pool = backend.pool
        self._lock = backend.spans.lock
        self._sessions: dict[str, SessionCache] = {}
        self._batch: Batch | None = None
        self._before: list[Resize] = []  # the blocks that the batch's sessions had before it
        self._last_step_id = -1
        self._last: tuple[SpanStep[Tensor], SpanResult[Tensor]] | None = None
        self._is_ended = False
        self._thread = 0

    def open(self, sessions: Sequence[OpenSession]) -> int:
        """Open all or none; returns the cache bytes still free.

        Raises: InvalidRequestError for an id in use or an end layer out of range; ContextLengthError;
        CacheFullError.
        """
        with self._lock:
            self._refuse_misuse()
            self._pool.evict_idle()
            self._sessions = {name: session for name, session in self._sessions.items() if session.is_open}
            self._check_opening(sessions)
            wanted = [(s.num_tokens, s.end_layer or self._spans.num_layers) for s in sessions]
            caches = self._pool.open(wanted)
            self._sessions.update((s.session_id, cache) for s, cache in zip(sessions, caches, strict=True))
            self._backend.watch_idle_sessions()
            return self._pool.bytes_free

    def step(self, step: SpanStep[Tensor]) -> SpanResult[Tensor]:
        """Run one span of a packed batch, as `braid_rpc.steps.SpanStep` describes.

        The last step sent again gives its result again. A new batch gives up a suspended one. A batch run to
        the last layer without being final only looks: it leaves no trace.
        Raises: StepOrderError, UnknownSessionError, ShapeMismatchError, FrameError, InvalidRequestError,
        ContextLengthError, CacheFullError.
        """
        asked_s = time.perf_counter()
        with self._lock.serving(), torch.inference_mode():
            started_s = time.perf_counter()
            self._refuse_misuse()
            self._pool.evict_idle()
            if self._last and step.step_id == self._last_step_id and self._was_answered(step, self._last[0]):
                return self._last[1]
            hidden, logits = self._begin(step) if step.token_ids is not None else self._go_on(step)
            timings = Timings(compute_s=time.perf_counter() - started_s, wait_s=started_s - asked_s)
            result = SpanResult(hidden, logits, timings, self._pool.bytes_free)
            self._last = (step, result)
            return result

    def crop(self, session_id: str, length: int) -> int:
        """Forget a session's positions from ``length`` on; returns the cache bytes free.

        Gives up a suspended batch that the session is part of.
        Raises: UnknownSessionError, InvalidRequestError.
        """
        with self._lock:
            self._refuse_misuse()
            session = self._session(session_id)
            if not 0 <= length <= session.length:
                raise InvalidRequestError(
                    f"session {session_id!r}: got length {length}, expected [0, {session.length}]"
                )
            self._forget_steps_of([session])
            self._pool.crop(session, length)
            return self._pool.bytes_free

    def close(self, session_ids: Sequence[str]) -> int:
        """Free the sessions' caches; returns the cache bytes free. Unknown ids are passed over."""
        with self._lock:
            names = [name for name in dict.fromkeys(session_ids) if name in self._sessions]
            closed = [self._sessions.pop(name) for name in names]
            self._pool.close(closed)
            self._forget_steps_of(closed)
            return self._pool.bytes_free

    def end(self) -> None:
        """Free everything; the stream is not used again. Harmless when repeated, and on any thread."""
        with self._lock:
            self._is_ended = True
            self._pool.close(self._sessions.values())
            self._sessions.clear()
            self._give_up_batch()
            self._last = None

    def _begin(self, step: SpanStep[Tensor]) -> tuple[Tensor, Tensor | None]:
        if step.step_id <= self._last_step_id:
            raise StepOrderError(f"step {step.step_id}: expected an id above the last, {self._last_step_id}")
        batch = new_batch(self._spans, step, self._session, self._backend.context_length)
        check_result_size(step, batch, self._spans, self._max_result_bytes)
        undone = {resize.session: resize.num_blocks for resize in self._before}
        before = [Resize(session, undone.get(session, session.num_blocks)) for session in batch.sessions]
        wanted = [
            Resize(old.session, max(old.num_blocks, self._pool.num_blocks(length)))
            for old, length in zip(before, batch.lengths, strict=True)
        ]
        self._pool.resize(wanted, instead_of=self._before)
        if self._batch:
            self._batch.run.drop()
        self._batch, self._before = batch, before
        self._last_step_id = step.step_id
        return self._run_span(batch, step, None)

    def _go_on(self, step: SpanStep[Tensor]) -> tuple[Tensor, Tensor | None]:
        batch = check_follows(step, self._batch)
        if not all(session.is_open for session in batch.sessions):
            self._give_up_batch()
            raise UnknownSessionError(f"step {step.step_id}: a session was evicted while its batch waited")
        hidden_TD = next_states(step, batch, self._spans)
        check_end(step, batch.sessions, self._spans.num_layers)
        check_result_size(step, batch, self._spans, self._max_result_bytes)
        return self._run_span(batch, step, hidden_TD)

    def _run_span(
        self, batch: Batch, step: SpanStep[Tensor], hidden_TD: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """States at the span's end, or after the last layer the head's input and the logits; on the CPU."""
        is_last = step.end_layer == self._spans.num_layers
        out: tuple[Tensor, Tensor | None]
        try:
            if is_last:
                hidden, logits = batch.run.finish(hidden_TD)
                out = hidden.cpu(), logits.cpu()
            else:
                batch.states = batch.run.advance(step.end_layer, hidden_TD)
                out = batch.states.cpu(), None
        except BaseException:
            self._give_up_batch()
            raise
        batch.layer = step.end_layer
        if step.final:
            for session, length in zip(batch.sessions, batch.lengths, strict=True):
                session.length = length
            self._batch, self._before = None, []
            batch.run.drop()
        elif is_last:
            self._give_up_batch()
        self._pool.touch(batch.sessions)
        return out

    def _was_answered(self, step: SpanStep[Tensor], last: SpanStep[Tensor]) -> bool:
        # Empty later spans are no repeats: there may be several at one layer, and each gives back what it got.
        is_empty_later = step.token_ids is None and step.start_layer == step.end_layer
        return not (is_empty_later and self._batch) and is_repeat(step, last)

    def _session(self, session_id: str) -> SessionCache:
        session = self._sessions.get(session_id)
        if session is None or not session.is_open:
            raise UnknownSessionError(
                f"session {session_id!r}: not open on this stream (never, closed or evicted)"
            )
        return session

    def _check_opening(self, sessions: Sequence[OpenSession]) -> None:
        num_layers, context_length = self._spans.num_layers, self._backend.context_length
        taken = set(self._sessions)
        for session in sessions:
            name = f"session {session.session_id!r}"
            if not session.session_id or session.session_id in taken:
                raise InvalidRequestError(f"{name}: expected an id not in use yet")
            taken.add(session.session_id)
            if not 0 <= session.end_layer <= num_layers:
                raise InvalidRequestError(
                    f"{name}: got end_layer {session.end_layer}, expected [0, {num_layers}]"
                )
            if not 0 <= session.num_tokens <= context_length:
                raise ContextLengthError(
                    f"{name}: got {session.num_tokens} tokens, expected at most {context_length}"
                )

    def _forget_steps_of(self, sessions: Sequence[SessionCache]) -> None:
        if sessions:
            self._last = None
        if self._batch and not set(sessions).isdisjoint(self._batch.sessions):
            self._give_up_batch()

    def _give_up_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch:
            self._last = None  # there is nothing to go on with from it
            batch.run.drop()
            self._pool.resize(self._before)
            self._before = []

    def _refuse_misuse(self) -> None:
        if self._is_ended:
            raise ConflictError("the stream has ended; open another one")
        if threading.get_ident() != self._thread:
            if self._thread and self._batch:
                raise ConflictError("a shard stream with a batch under way was used from another thread")
            self._thread = threading.get_ident()
