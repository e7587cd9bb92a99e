"""The engine: takes requests in, and in one thread goes round schedule → run → report until it is stopped.

Requests may come from any thread; their events go to their sinks from the engine's thread. Parts that fail are
reconnected and what ran there is run again from its tokens, so a user sees a pause, not an error; what can't
be brought back in time is refused with a typed error. Knows neither HTTP nor gRPC.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from braid_fusion.plan import BraidPlan
from braid_orchestrator.config import LimitsConfig
from braid_orchestrator.intake import Intake
from braid_orchestrator.lockstep import LockStep, Scores
from braid_orchestrator.ports import Fusion, Shard
from braid_orchestrator.reporting import emit, fail, report
from braid_orchestrator.requests import GenerateRequest, ScoreRequest, Started
from braid_orchestrator.roster import Roster
from braid_orchestrator.scheduler import Scheduler, Work, pack
from braid_orchestrator.sessions import BRAIDED, GeneratedSequence, Request, Sequence, Sink
from braid_orchestrator.text import TextCodec
from braid_orchestrator.trace import StepTrace
from braid_rpc.cards import ShardCard
from braid_rpc.errors import (
    BraidError,
    CacheFullError,
    DeadlineError,
    RequestCancelledError,
    UnavailableError,
    UnknownSessionError,
)

_log = logging.getLogger(__name__)

_MAX_RECOVERIES = 3
_RECONNECT_EVERY_S = 0.25
_RETRY_DOWN_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment of the engine: how many sequences run and wait, tokens so far, free and total cache per shard."""

    running: int
    waiting: int
    prompt_tokens: int
    completion_tokens: int
    steps: int
    cache_bytes_free: dict[str, int]
    cache_bytes_total: dict[str, int]


class Engine:
    """One braid's engine over its shards and fusion modules, which it owns from `start` to `stop`."""

    def __init__(
        self,
        name: str,
        shards: Many[Shard],
        fusion: Fusion,
        plan: BraidPlan,
        text: TextCodec,
        limits: LimitsConfig,
    ) -> None:
        self.name = name
        self.plan = plan
        self.text = text
        self.trace = StepTrace()
        self._shards = shards
        self._fusion = fusion
        self._limits = limits
        self._lockstep = LockStep(shards, fusion, plan)
        self._roster = Roster(shards, fusion, plan, self._lockstep)
        self._scheduler = Scheduler(limits)
        self._intake = Intake(plan, [shard.card for shard in shards], text, limits)
        self._shard_names = [shard.name for shard in plan.shards]
        self._requests: dict[str, Request] = {}
        self._inbox: list[Sequence] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._down: UnavailableError | None = None
        self._crowded = False  # a sequence had to give way: admit no more until another one leaves
        self._thread = threading.Thread(target=self._loop, name=f"engine-{name}", daemon=True)
        self._prompt_tokens = self._completion_tokens = self._steps = 0

    # --- from any thread -------------------------------------------------------------------------------------

    @property
    def cards(self) -> list[ShardCard]:
        """The shards' cards, in the plan's order."""
        return [shard.card for shard in self._shards]

    @property
    def context_length(self) -> int:
        """Tokens that every shard can hold."""
        return self._intake.context_length(BRAIDED)

    @property
    def weights_version(self) -> str:
        """The version of the fusion weights that new sessions get."""
        return self._fusion.active_version

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse what is left, free everything, end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        for shard in self._shards:
            shard.shutdown()
        self._fusion.shutdown()

    def submit(self, request: GenerateRequest, sink: Sink) -> str:
        """Take a request in; its events go to ``sink``: `Started` first, `Finished` or a `BraidError` last.

        Returns: its id. Raises: InvalidRequestError, ContextLengthError, UnknownShardError, QueueFullError,
        UnavailableError.
        """
        self.check_ready()
        prepared = self._intake.generation(request, request.request_id or uuid.uuid4().hex, sink)
        return self._enqueue(prepared)

    def submit_score(self, request: ScoreRequest, sink: Sink) -> str:
        """Take a text in; one `ScoreResult` or `BraidError` goes to ``sink``. Returns and raises as `submit`."""
        self.check_ready()
        return self._enqueue([self._intake.scoring(request, uuid.uuid4().hex, sink)])

    def cancel(self, request_id: str) -> bool:
        """End a request; its sink gets a `RequestCancelledError`. False if there is none of that id."""
        with self._wake:
            request = self._requests.get(request_id)
            if request is None:
                return False
            request.cancelled = True
            self._wake.notify()
            return True

    def check_ready(self) -> None:
        """Raises: UnavailableError, saying what is missing."""
        if self._stopping:
            raise UnavailableError(f"braid {self.name!r} is shutting down")
        if self._down is not None:
            raise UnavailableError(self._down.message, retry_after_s=_RETRY_DOWN_EVERY_S)

    def activate(self, version: str) -> None:
        """Use another version of the fusion weights for sessions opened from now on."""
        self._fusion.activate(version)

    def stats(self) -> EngineStats:
        """Counts and room, now."""
        cards = [(shard.name, shard.card) for shard in self._shards]
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting + len(self._inbox),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            steps=self._steps,
            cache_bytes_free={name: card.cache_bytes_free for name, card in cards},
            cache_bytes_total={name: card.cache_bytes_total for name, card in cards},
        )

    def _enqueue(self, sequences: list[Sequence]) -> str:
        request = sequences[0].request
        with self._wake:
            self._intake.check_unused(request.request_id, self._requests)
            self._scheduler.check_room(len(sequences) + len(self._inbox), self._expected_wait_s())
            self._requests[request.request_id] = request
            self._inbox.extend(sequences)
            self._wake.notify()
        return request.request_id

    def _expected_wait_s(self) -> float:
        return float(max(1, math.ceil(self._scheduler.num_waiting / max(self._limits.max_running, 1))))

    # --- in the engine's thread ------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (
                    self._stopping
                    or self._inbox
                    or self._scheduler.num_running
                    or self._scheduler.num_waiting
                ):
                    self._wake.wait(_RETRY_DOWN_EVERY_S if self._down else None)
                    if self._down:
                        break
                arrived, self._inbox = self._inbox, []
            self._scheduler.enqueue(arrived)
            if self._stopping:
                break
            if self._down is None:
                self._turn()
            else:
                self._retry_down()
        self._abandon(list(self._scheduler), UnavailableError(f"braid {self.name!r} is shutting down"))

    def _turn(self) -> None:
        """One round. Whatever goes wrong here ends requests, never the thread."""
        works: list[Work] = []
        try:
            self._sweep()
            if not (self._crowded and self._scheduler.num_running):
                self._scheduler.admit(self._open)
            works = self._scheduler.next_works()
            if works:
                self._run(works)
                self._steps += 1
        except (UnavailableError, DeadlineError, UnknownSessionError) as error:
            self._recover(error)
        except CacheFullError as error:
            self._make_room(works, error)
        except Exception as error:  # noqa: BLE001 - a fault of ours: refuse what ran, start afresh, go on
            _log.exception("engine step failed")
            failure = (
                error
                if isinstance(error, BraidError)
                else BraidError(f"internal error: {type(error).__name__}")
            )
            self._abandon([*self._scheduler.running], failure)
            self._recover(UnavailableError("restarting after an internal error"))

    def _run(self, works: list[Work]) -> None:
        routes: dict[int, list[Work]] = {}
        for work in works:
            routes.setdefault(work.sequence.route, []).append(work)
        braided = routes.pop(BRAIDED, None)
        if braided:
            self._report(braided, self._lockstep.run_braided(pack(braided), self.trace))
        if routes:
            scores = self._lockstep.run_alone({shard: pack(ws) for shard, ws in routes.items()}, self.trace)
            for shard, works_of_shard in routes.items():
                self._report(works_of_shard, scores.get(shard))

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
                finished = report(work, scores, rows, self._shard_names, self.text)
            except BraidError as error:
                fail(sequence.request, error)
                finished = True
            self._completion_tokens += sequence.request.completion_tokens - before
            if finished:
                done.append(sequence)
        self._retire(done)

    def _open(self, sequence: Sequence) -> bool:
        try:
            self._roster.open(sequence)
        except CacheFullError as error:
            if self._scheduler.num_running:
                return False
            self._abandon([sequence], error)
            return False
        except (UnavailableError, DeadlineError):
            raise
        except BraidError as error:
            self._abandon([sequence], error)
            return False
        request = sequence.request
        request.note_admission()
        if not request.started:
            request.started = True
            self._prompt_tokens += request.prompt_tokens
            if isinstance(sequence, GeneratedSequence):
                emit(request, Started(request.request_id, request.prompt_tokens, sequence.weights_version))
        return True

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
        with self._wake:
            for request in ended:
                self._requests.pop(request.request_id, None)
        self._roster.close(leaving)

    def _abandon(self, sequences: list[Sequence], error: BraidError) -> None:
        for sequence in sequences:
            fail(sequence.request, error)
        try:
            self._retire(sequences)
        except BraidError as close_error:
            _log.warning("closing sessions failed: %s", close_error)

    # --- when something fails --------------------------------------------------------------------------------

    def _make_room(self, works: list[Work], error: CacheFullError) -> None:
        """The caches are full in the middle: the youngest sequence gives way and starts again later."""
        if len(works) <= 1:
            self._abandon([work.sequence for work in works], error)
            return
        youngest = self._scheduler.running[-1]
        self._roster.close([youngest])
        self._scheduler.send_back([youngest])
        self._crowded = True

    def _recover(self, error: BraidError) -> None:
        """Sessions are lost: all sequences go back to wait, all parts are connected afresh."""
        _log.warning("recovering: %s", error)
        lost = [*self._scheduler.running]
        self._scheduler.send_back(lost)
        for sequence in lost:
            sequence.session_id = ""
            sequence.num_cached = 0
            sequence.num_recoveries += 1
        self._abandon([s for s in lost if s.num_recoveries > _MAX_RECOVERIES], error)
        give_up_s = time.monotonic() + self._limits.recovery_timeout_s
        while not self._stopping:
            try:
                self._roster.reconnect()
                return
            except BraidError as still:
                if time.monotonic() > give_up_s:
                    self._down = UnavailableError(still.message)
                    with self._wake:
                        arrived, self._inbox = self._inbox, []
                    self._scheduler.enqueue(arrived)
                    self._abandon(list(self._scheduler), self._down)
                    return
            self._sweep()
            with self._wake:
                self._wake.wait(_RECONNECT_EVERY_S)

    def _retry_down(self) -> None:
        try:
            self._roster.reconnect()
        except BraidError as error:
            self._down = UnavailableError(error.message)
            self._abandon(list(self._scheduler), self._down)
        else:
            self._down = None
