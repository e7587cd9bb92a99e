"""The engine's rounds: admit, run, report, and what happens when room or a part of the braid is lost.

All of it runs in one thread, on state that no other thread touches. Parts that fail are connected afresh and
what ran there runs again from its tokens, so a user sees a pause, not an error; what can't be brought back in
time is refused. Knows neither threads nor queues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from braid_orchestrator.config.values import LimitsConfig
from braid_orchestrator.engine.lanes import Lanes
from braid_orchestrator.engine.lockstep import LockStep
from braid_orchestrator.engine.packing import Work, pack
from braid_orchestrator.engine.readout import Scores
from braid_orchestrator.engine.reporting import emit, fail, report
from braid_orchestrator.engine.requests import Started
from braid_orchestrator.engine.roster import Roster
from braid_orchestrator.engine.scheduler import Scheduler
from braid_orchestrator.engine.sessions import BRAIDED, GeneratedSequence, Request, Sequence
from braid_orchestrator.engine.step_shares import StepDifference, StepShare
from braid_orchestrator.engine.text import TextCodec
from braid_orchestrator.engine.trace import StepTrace
from braid_rpc.errors import (
    BraidError,
    CacheFullError,
    DeadlineError,
    RequestCancelledError,
    UnavailableError,
    UnknownSessionError,
)

_log = logging.getLogger(__name__)

# A sequence that goes down with a part that often may be what brings it down.
_MAX_RECOVERIES = 3
_RECONNECT_EVERY_S = 0.25
_RECONNECT_DOWN_EVERY_S = 1.0


class Rounds:
    """Everything that one engine's thread does. ``on_ended`` is told of every request that ended."""

    def __init__(
        self,
        scheduler: Scheduler,
        lockstep: LockStep,
        roster: Roster,
        lanes: Lanes,
        limits: LimitsConfig,
        shard_names: list[str],
        on_ended: Callable[[Request], None],
    ) -> None:
        self.trace = StepTrace()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.steps = 0
        self.preemptions = 0
        self.recoveries = 0
        self.losses = 0
        self._scheduler = scheduler
        self._lockstep = lockstep
        self._roster = roster
        self._lanes = lanes
        self._limits = limits
        self._shard_names = shard_names
        self._on_ended = on_ended
        self._crowded = False  # a sequence had to give way: admit no more until another one leaves
        self._lost: BraidError | None = None  # a part is gone and not yet back
        self._lost_since_s = 0.0
        self._given_up = False

    @property
    def down(self) -> BraidError | None:
        """Why no request can be served, if none can: a part is gone and didn't come back in time."""
        return self._lost if self._given_up else None

    @property
    def lost(self) -> BraidError | None:
        """Why a part is missing just now, if one is."""
        return self._lost

    @property
    def pause_s(self) -> float | None:
        """How long to wait before the next round: until something happens (None) if there is nothing to do."""
        if self._lost is not None:
            return _RECONNECT_DOWN_EVERY_S if self._given_up else _RECONNECT_EVERY_S
        return 0.0 if self._scheduler.num_running or self._scheduler.num_waiting else None

    def turn(self) -> None:
        """One round. Whatever goes wrong here ends requests, never the thread."""
        try:
            self._sweep()
            if self._lost is not None:
                self._reconnect()
                return
            if not (self._crowded and self._scheduler.num_running):
                self._scheduler.admit(self._open)
            works = self._scheduler.next_works()
            if works:
                started_s = time.perf_counter()
                self._run(works)
                num_rows = sum(work.num_rows for work in works)
                self.trace.totals.add_step(time.perf_counter() - started_s, num_rows, len(works))
                self.steps += 1
            else:
                self._roster.ping()
        except (UnavailableError, DeadlineError, UnknownSessionError) as error:
            self._lose(error)
        except CacheFullError as error:
            self._make_room(error)
        except Exception as error:  # noqa: BLE001 - a fault of ours: refuse what ran, start afresh, go on
            _log.exception("engine round failed")
            self.abandon(
                self._scheduler.running, error if isinstance(error, BraidError) else _internal(error)
            )
            self._lose(UnavailableError("starting afresh after an internal error"))

    def abandon(self, sequences: Iterable[Sequence], error: BraidError) -> None:
        """End the requests of these sequences with an error."""
        leaving = list(sequences)
        for sequence in leaving:
            fail(sequence.request, error)
        try:
            self._retire(leaving)
        except BraidError as close_error:
            _log.warning("closing sessions failed: %s", close_error)

    # --- running ---------------------------------------------------------------------------------------------

    def _run(self, works: list[Work]) -> None:
        routes: dict[int, list[Work]] = {}
        for work in works:
            routes.setdefault(work.sequence.route, []).append(work)
        braided = routes.pop(BRAIDED, None)
        if braided:
            watched = self._watch(braided)
            braided_scores = self._lockstep.run_braided(pack(braided), self.trace)
            if watched:
                watched.finish(_shares(braided), alone=None)
            self._report(braided, braided_scores)
        if routes:
            watched = self._watch(work for works_of_shard in routes.values() for work in works_of_shard)
            scores = self._lockstep.run_alone({shard: pack(ws) for shard, ws in routes.items()}, self.trace)
            if watched:
                for shard, works_of_shard in routes.items():
                    watched.finish(_shares(works_of_shard), alone=shard)
            for shard, works_of_shard in routes.items():
                self._report(works_of_shard, scores.get(shard))

    def _watch(self, works: Iterable[Work]) -> StepDifference | None:
        """Says what a step takes, if anybody asked for that."""
        wanted = any(work.sequence.request.steps is not None for work in works)
        return StepDifference(self.trace.totals) if wanted else None

    def _report(self, works: list[Work], scores: Scores | None) -> None:
        done: list[Sequence] = []
        row = 0
        for work in works:
            sequence = work.sequence
            sequence.num_cached += work.num_rows
            rows = slice(row, row + len(work.logit_rows))
            row = rows.stop
            before = sequence.request.completion_tokens
            try:
                finished = report(work, scores, rows, self._shard_names, self._codec(sequence))
            except Exception as error:  # noqa: BLE001 - what one request brought about is that request's
                if not isinstance(error, BraidError):
                    _log.exception(
                        "request failed unexpectedly",
                        extra={"request_id": sequence.request.request_id, "session_id": sequence.session_id},
                    )
                fail(sequence.request, error if isinstance(error, BraidError) else _internal(error))
                finished = True
            self.completion_tokens += sequence.request.completion_tokens - before
            if finished:
                done.append(sequence)
        self._retire(done)

    def _codec(self, sequence: Sequence) -> TextCodec:
        return self._lanes.anchor if sequence.route == BRAIDED else self._lanes.codec(sequence.route)

    def _open(self, sequence: Sequence) -> bool:
        """Open a waiting sequence's sessions. False: not now, or (then it is gone from the queue) never."""
        try:
            self._roster.open(sequence)
        except CacheFullError as error:
            if not self._scheduler.num_running:
                self.abandon([sequence], error)
            return False
        except (UnavailableError, DeadlineError):
            raise
        except BraidError as error:
            self.abandon([sequence], error)
            return False
        request = sequence.request
        request.note_admission()
        if not request.started:
            request.started = True
            self.prompt_tokens += request.prompt_tokens
            if isinstance(sequence, GeneratedSequence):
                emit(request, Started(request.request_id, request.prompt_tokens, sequence.weights_version))
        return True

    # --- ending ----------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """End what was cancelled or is too late."""
        now = time.monotonic()
        for request in {sequence.request for sequence in self._scheduler}:
            if request.cancelled:
                fail(request, RequestCancelledError(f"request {request.request_id} was cancelled"))
            elif now > request.deadline_s:
                fail(
                    request,
                    DeadlineError(
                        f"request {request.request_id} took longer than {request.timeout_s:g} s "
                        f"({request.completion_tokens} tokens so far)"
                    ),
                )
        self._retire([sequence for sequence in self._scheduler if sequence.request.ended])

    def _retire(self, sequences: Iterable[Sequence]) -> None:
        """Take sequences out, those of ended requests with all their siblings, and free their caches."""
        leaving = {*sequences}
        ended = {sequence.request for sequence in leaving if sequence.request.ended}
        leaving |= {sequence for sequence in self._scheduler if sequence.request in ended}
        for sequence in leaving:
            self._scheduler.remove(sequence)
            self._crowded = False
        for request in ended:
            self._on_ended(request)
        self._roster.close(leaving)

    # --- losing and getting back -----------------------------------------------------------------------------

    def _make_room(self, error: CacheFullError) -> None:
        """The caches are full in the middle: the youngest sequence gives way and starts again later."""
        if self._scheduler.num_running <= 1:
            self.abandon(self._scheduler.running, error)
            return
        youngest = self._scheduler.running[-1]
        try:
            self._roster.close([youngest])
        except BraidError as close_error:
            self._lose(close_error)
            return
        _log.info(
            "a sequence gives way in a full cache",
            extra={"request_id": youngest.request.request_id, "session_id": youngest.session_id},
        )
        self._scheduler.send_back([youngest])
        self._crowded = True
        self.preemptions += 1

    def _lose(self, error: BraidError) -> None:
        """Sessions are lost somewhere: all sequences go back to wait until all parts are connected afresh."""
        lost = self._scheduler.running
        requests = sorted({sequence.request.request_id for sequence in lost})
        _log.warning("lost a part of the braid: %s", error, extra={"requests": requests})
        self._scheduler.send_back(lost)
        for sequence in lost:
            sequence.session_id = ""
            sequence.num_cached = 0
            sequence.num_recoveries += 1
        self.abandon([sequence for sequence in lost if sequence.num_recoveries > _MAX_RECOVERIES], error)
        self.losses += 1
        if self._lost is None:
            self._lost_since_s = time.monotonic()
        self._lost = error

    def _reconnect(self) -> None:
        try:
            self._roster.reconnect()
        except BraidError as error:
            self._lost = error
            if time.monotonic() - self._lost_since_s > self._limits.recovery_timeout_s:
                self._given_up = True
                self.abandon(list(self._scheduler), UnavailableError(error.message, retry_after_s=1.0))
            return
        away_s = round(time.monotonic() - self._lost_since_s, 3)
        _log.warning("all parts are back", extra={"away_s": away_s})
        self._lost = None
        self._given_up = False
        self.recoveries += 1


def _shares(works: Iterable[Work]) -> set[StepShare]:
    """Of the requests that asked for theirs, each once."""
    return {share for work in works if (share := work.sequence.request.steps) is not None}


def _internal(error: Exception) -> BraidError:
    return BraidError(f"internal error: {type(error).__name__}")
