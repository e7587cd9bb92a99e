"""The engine: takes requests in from any thread, and drives the rounds in one of its own.

A request's events go to its sink from the engine's thread. Knows neither HTTP nor gRPC.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from braid_fusion.plan import BraidPlan
from braid_orchestrator.config.values import LimitsConfig
from braid_orchestrator.engine.intake import Intake
from braid_orchestrator.engine.lanes import Lanes
from braid_orchestrator.engine.lockstep import LockStep
from braid_orchestrator.engine.ports import Fusion, PointMetrics, Shard
from braid_orchestrator.engine.requests import Event, GenerateRequest, ScoreRequest
from braid_orchestrator.engine.resuming import Replay
from braid_orchestrator.engine.roster import Roster
from braid_orchestrator.engine.rounds import Rounds
from braid_orchestrator.engine.scheduler import Scheduler
from braid_orchestrator.engine.sessions import BRAIDED, Request, Sequence, Sink
from braid_orchestrator.engine.totals import StepTotals
from braid_orchestrator.engine.trace import StepTrace
from braid_rpc.cards import ShardCard
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES
from braid_rpc.errors import UnavailableError
from braid_rpc.publishing import PublishedVersion

# What a message holds beside its logits.
_ENVELOPE_BYTES = 2 * 2**20
# An idle engine looks that often whether its parts are still there.
_PING_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment of the engine: how many sequences run and wait, tokens so far, free and total cache per shard.

    ``preemptions`` counts sequences that gave way in a full cache, ``losses`` how often a part was lost and
    ``recoveries`` how often all were back; ``is_whole`` is whether they are now. ``link_bytes`` are those of all
    messages over each shard's present connections. ``totals`` go on growing.
    """

    running: int
    waiting: int
    prompt_tokens: int
    completion_tokens: int
    steps: int
    cache_bytes_free: dict[str, int]
    cache_bytes_total: dict[str, int]
    preemptions: int = 0
    recoveries: int = 0
    losses: int = 0
    is_whole: bool = True
    replicas: dict[str, int] = field(default_factory=dict)
    link_bytes: dict[str, int] = field(default_factory=dict)
    totals: StepTotals = field(default_factory=StepTotals)


class Engine:
    """One braid's engine over its shards and fusion modules, which it owns from `start` to `stop`."""

    def __init__(
        self,
        name: str,
        shards: Many[Shard],
        fusion: Fusion,
        plan: BraidPlan,
        lanes: Lanes,
        limits: LimitsConfig,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        """``max_message_bytes`` is what fits into one message of any shard."""
        self.name = name
        self.plan = plan
        self.text = lanes.anchor
        self._shards = shards
        self._fusion = fusion
        self._limits = limits
        self._intake = Intake(plan, [shard.card for shard in shards], lanes, limits)
        row_bytes = 4 * max(shard.vocab_size + shard.width for shard in plan.shards)
        self._scheduler = Scheduler(limits, max(2, (max_message_bytes - _ENVELOPE_BYTES) // row_bytes))
        lockstep = LockStep(shards, fusion, plan, lanes)
        self._rounds = Rounds(
            self._scheduler,
            lockstep,
            Roster(shards, fusion, plan, lockstep),
            lanes,
            limits,
            [shard.name for shard in plan.shards],
            self._forget,
        )
        self._requests: dict[str, Request] = {}
        self._inbox: list[Sequence] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._last_round_s = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name=f"engine-{name}", daemon=True)

    @property
    def cards(self) -> list[ShardCard]:
        """The shards' cards, in the plan's order."""
        return [shard.card for shard in self._shards]

    @property
    def shards(self) -> Many[Shard]:
        """For measuring, in the plan's order; the engine's thread alone may step them."""
        return self._shards

    @property
    def context_length(self) -> int:
        """The anchor's tokens that it, and every shard of its tokenizer, can hold."""
        return self._intake.context_length(BRAIDED)

    @property
    def weights_version(self) -> str:
        """The version of the fusion weights that new sessions get."""
        return self._fusion.active_version

    @property
    def trace(self) -> StepTrace:
        """Where the time of all steps so far went."""
        return self._rounds.trace

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse what is left, free everything, end the thread. Harmless when repeated."""
        with self._wake:
            if self._stopping:
                return
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
        self._check_open()
        return self._enqueue(self._intake.generation(request, request.request_id or uuid.uuid4().hex, sink))

    def resume(self, request: GenerateRequest, events: Many[Event], sink: Sink) -> str:
        """Carry on a request that was begun elsewhere: the same tokens follow that would have followed there.

        Args:
            request: with its id and the seed that it had.
            events: what had come of it. They go to ``sink`` again, before those that follow.
        Returns and raises: as `submit`.
        """
        self._check_open()
        replayed = Replay(events, sink)
        sequences = self._intake.generation(request, request.request_id, replayed.sink)
        running = replayed.carry_on(sequences, self.text)
        if running:
            return self._enqueue(running)
        replayed.finish(sequences[0].request)
        return request.request_id

    def submit_score(self, request: ScoreRequest, sink: Sink) -> str:
        """Take a text in; one `ScoreResult` or `BraidError` goes to ``sink``. Returns and raises as `submit`."""
        self._check_open()
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
        """All parts answer. Raises: UnavailableError, saying what is missing."""
        self._check_open()
        lost = self._rounds.lost
        if lost is not None:
            raise UnavailableError(lost.message, retry_after_s=1.0)

    def check_alive(self) -> None:
        """The engine goes round, whether or not its parts answer. Raises: UnavailableError."""
        age_s = time.monotonic() - self._last_round_s
        if not self._thread.is_alive():
            raise UnavailableError(f"braid {self.name!r}: the engine's thread has ended")
        if age_s > 2 * self._limits.step_timeout_s + _PING_EVERY_S:
            raise UnavailableError(f"braid {self.name!r}: the engine has been stuck for {age_s:.0f} s")

    def _check_open(self) -> None:
        """Requests are taken in: also while a lost part may come back soon. Raises: UnavailableError."""
        if self._stopping:
            raise UnavailableError(f"braid {self.name!r} is shutting down")
        down = self._rounds.down
        if down is not None:
            raise UnavailableError(down.message, retry_after_s=1.0)

    def activate(self, version: str) -> None:
        """Use another version of the fusion weights for sessions opened from now on."""
        self._fusion.activate(version)

    @property
    def max_publish_bytes(self) -> int:
        """What the weights of a published version may have; 0: none is taken in."""
        return self._fusion.max_publish_bytes

    def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """Take in another version of the fusion weights, from any thread; as `ports.Fusion.publish`."""
        return self._fusion.publish(card_json, data, version, activate=activate)

    def point_metrics(self) -> Many[PointMetrics]:
        """What the fusion modules say about themselves; may ask another process. Raises: UnavailableError."""
        return self._fusion.metrics()

    def stats(self) -> EngineStats:
        """Counts and room, now."""
        cards = self.cards
        rounds = self._rounds
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting + len(self._inbox),
            prompt_tokens=rounds.prompt_tokens,
            completion_tokens=rounds.completion_tokens,
            steps=rounds.steps,
            cache_bytes_free={card.name: card.cache_bytes_free for card in cards},
            cache_bytes_total={card.name: card.cache_bytes_total for card in cards},
            preemptions=rounds.preemptions,
            recoveries=rounds.recoveries,
            losses=rounds.losses,
            is_whole=rounds.lost is None,
            replicas={shard.name: shard.num_replicas for shard in self._shards},
            link_bytes={shard.name: shard.num_bytes for shard in self._shards},
            totals=rounds.trace.totals,
        )

    def _enqueue(self, sequences: list[Sequence]) -> str:
        request = sequences[0].request
        with self._wake:
            self._check_open()
            self._intake.check_unused(request.request_id, self._requests)
            self._scheduler.check_room(len(sequences) + len(self._inbox), self._expected_wait_s())
            self._requests[request.request_id] = request
            self._inbox.extend(sequences)
            self._wake.notify()
        return request.request_id

    def _expected_wait_s(self) -> float:
        return float(max(1, math.ceil(self._scheduler.num_waiting / max(self._limits.max_running, 1))))

    def _forget(self, request: Request) -> None:
        with self._wake:
            self._requests.pop(request.request_id, None)

    def _loop(self) -> None:
        while True:
            with self._wake:
                pause_s = self._rounds.pause_s
                if pause_s != 0.0 and not self._stopping and not self._inbox:
                    self._wake.wait(_PING_EVERY_S if pause_s is None else pause_s)
                arrived, self._inbox = self._inbox, []
            self._last_round_s = time.monotonic()
            self._scheduler.enqueue(arrived)
            if self._stopping:
                break
            self._rounds.turn()
        self._rounds.abandon(list(self._scheduler), UnavailableError(f"braid {self.name!r} is shutting down"))
