"""The braid as its front ends see it: asynchronous, by requests and events. Knows the engine, no transport."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from braid_fusion.plan import BraidPlan, PlanPoint
from braid_orchestrator.deciding import AskedT, Deciding
from braid_orchestrator.engine.engine import Engine, EngineStats
from braid_orchestrator.engine.ports import PointMetrics
from braid_orchestrator.engine.requests import Event, Finished, GenerateRequest, ScoreRequest, ScoreResult
from braid_orchestrator.engine.sessions import Sink
from braid_orchestrator.serving.rate_limit import RateLimiter
from braid_orchestrator.serving.shard_text import ShardText
from braid_orchestrator.state.link import StateLink
from braid_rpc.cards import ShardCard
from braid_rpc.errors import BraidError, NotFoundError, RequestCancelledError, UnknownShardError
from braid_rpc.publishing import PublishedVersion

# A stream whose reader is that far behind is cancelled: what it held is free for others.
MAX_UNREAD_EVENTS = 4096


@dataclass(frozen=True, slots=True)
class BraidDescription:
    """What is served."""

    name: str
    anchor: str
    shards: tuple[ShardCard, ...]
    points: tuple[PlanPoint, ...]
    readout: str
    weights_version: str
    context_length: int


class BraidService:
    """One engine for any number of event loops. The engine is running, and stops with `stop`."""

    def __init__(
        self,
        engine: Engine,
        texts: Sequence[ShardText],
        link: StateLink | None = None,
        limiter: RateLimiter | None = None,
        deciding: Deciding | None = None,
    ) -> None:
        """``texts``: one per shard. ``link`` ties it to other orchestrators, and is stopped with it; ``limiter``
        counts what callers send (None: nobody does). ``deciding`` None: requests that don't say are braided."""
        self._deciding = deciding or Deciding(engine.plan, engine.text.decode)
        self._limiter = limiter
        self._engine = engine
        self._link = link
        self._texts = {text.shard: text for text in texts}
        self.name = engine.name

    @property
    def engine(self) -> Engine:
        """For callers in this process who can do without an event loop."""
        return self._engine

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """The request's events, `Started` first and `Finished` last. Raises: BraidError.

        Leaving the iterator before its end (closing it, cancelling its task) cancels the request.
        """
        request = await self.decide(request)
        request = replace(request, request_id=request.request_id or uuid.uuid4().hex)
        link, engine = self._link, self._engine
        if link is not None:
            link.check()

        def submit(sink: Sink) -> str:
            return engine.submit(request, sink) if link is None else link.submit(engine, request, sink)

        async with aclosing(self._events(submit)) as events:
            async for event in events:
                yield event

    async def resume(self, request_id: str) -> tuple[GenerateRequest, AsyncGenerator[Event, None]]:
        """Carry on a request whose orchestrator died: what was asked, and its events from the first on, those that
        it had given out already included.

        Raises: NotFoundError, ConflictError if somebody answers it; all that `generate` raises.
        """
        if self._link is None:
            raise NotFoundError(f"request {request_id!r}: this orchestrator shares its state with no other")
        self._link.check()
        link, engine = self._link, self._engine
        journal = await asyncio.to_thread(link.take_over, request_id)

        past = len(journal.events)
        return journal.request, self._events(lambda sink: link.resume(engine, journal, sink), past)

    async def admit(self, caller: str) -> None:
        """One more request of a caller. Raises: RateLimitError if these are too many."""
        if self._limiter is not None:
            await self._limiter.admit(caller)

    async def orphans(self) -> list[str]:
        """Requests whose orchestrator is gone and that nobody carries on yet. Raises: UnavailableError."""
        return [] if self._link is None else await asyncio.to_thread(self._link.orphans)

    async def _events(self, submit: Callable[[Sink], str], num_past: int = 0) -> AsyncGenerator[Event, None]:
        inbox = _Inbox(self._engine, num_past)
        try:
            await inbox.submit(lambda: submit(inbox.put))
            while True:
                item = await inbox.get()
                if isinstance(item, ScoreResult):
                    raise TypeError("a generation request was answered with a score")
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            inbox.leave()

    async def decide(self, request: AskedT) -> AskedT:
        """The request saying who answers. Raises: NoDeciderError."""
        if isinstance(request.use_braiding, bool):
            return request
        return await asyncio.to_thread(self._deciding.settle, request)

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Log-probabilities of a text. Raises: BraidError."""
        request = await self.decide(request)
        if self._link is not None:
            self._link.check()
        inbox = _Inbox(self._engine)
        try:
            await inbox.submit(lambda: self._engine.submit_score(request, inbox.put))
            item = await inbox.get()
            if not isinstance(item, ScoreResult):
                raise TypeError(f"a score request was answered with {type(item).__name__}")
            return item
        finally:
            inbox.leave()

    def cancel(self, request_id: str) -> bool:
        """End a request. False if there is none of that id."""
        return self._engine.cancel(request_id)

    async def activate(self, version: str) -> str:
        """Use another version of the fusion weights for requests from now on; returns the active version."""
        await asyncio.to_thread((self._link or self._engine).activate, version)
        return self._engine.weights_version

    @property
    def plan(self) -> BraidPlan:
        """What the braid is built by."""
        return self._engine.plan

    @property
    def max_publish_bytes(self) -> int:
        """What the weights of a published version may have; 0: none is taken in."""
        return self._engine.max_publish_bytes

    async def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """Take in another version of the fusion weights, here and wherever the state is shared."""
        parts = self._link or self._engine
        return await asyncio.to_thread(parts.publish, card_json, data, version, activate=activate)

    def text(self, shard: str | None = None) -> ShardText:
        """The tokenizer and the chat template of a shard; None: of the anchor. Raises: UnknownShardError."""
        name = self.describe().anchor if shard is None else shard
        if name not in self._texts:
            raise UnknownShardError(f"shard: got {name!r}, expected one of {', '.join(self._texts)}")
        return self._texts[name]

    def describe(self) -> BraidDescription:
        """What is served, as it is now."""
        engine = self._engine
        return BraidDescription(
            name=engine.name,
            anchor=engine.plan.shards[engine.plan.anchor].name,
            shards=tuple(engine.cards),
            points=engine.plan.points,
            readout=engine.plan.readout.kind,
            weights_version=engine.weights_version,
            context_length=engine.context_length,
        )

    def ready(self) -> None:
        """Raises: UnavailableError, saying what is missing."""
        self._engine.check_ready()

    def check_alive(self) -> None:
        """Raises: UnavailableError if the engine has ended or is stuck."""
        self._engine.check_alive()

    def stats(self) -> EngineStats:
        """Counts and room, now."""
        return self._engine.stats()

    def point_metrics(self) -> Sequence[PointMetrics]:
        """As `Engine.point_metrics`."""
        return self._engine.point_metrics()

    def store_answers(self) -> bool | None:
        """Whether the state store did at the last heartbeat; None without one that is shared."""
        return None if self._link is None else self._link.is_up

    def stop(self) -> None:
        """Stop the engine; blocks until its thread has ended. What ends with it is left to other orchestrators."""
        if self._link is not None:
            self._link.leave()
        self._engine.stop()
        if self._link is not None:
            self._link.stop()


class _Inbox:
    """What the engine's thread has for one task of an event loop. Whoever leaves early cancels the request, be
    it before, while or after the engine takes it in."""

    def __init__(self, engine: Engine, num_past: int = 0) -> None:
        """``num_past`` events may come all at once."""
        self._engine = engine
        self._num_past = num_past
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | ScoreResult | BraidError] = asyncio.Queue()
        self._left = threading.Event()
        self._accepted_id: str | None = None
        self._ended = False
        self._overrun = False

    async def submit(self, submit: Callable[[], str]) -> None:
        """Off the loop, since a long prompt takes long to tokenize."""

        def in_thread() -> None:
            self._accepted_id = submit()
            if self._left.is_set() and not self._ended:
                self._engine.cancel(self._accepted_id)

        await asyncio.to_thread(in_thread)

    def put(self, item: Event | ScoreResult | BraidError) -> None:
        """From any thread."""
        self._ended = self._ended or isinstance(item, Finished | ScoreResult | BraidError)
        self._loop.call_soon_threadsafe(self._deliver, item)

    def _deliver(self, item: Event | ScoreResult | BraidError) -> None:
        if self._overrun:
            return
        limit = MAX_UNREAD_EVENTS + self._num_past
        if self._queue.qsize() >= limit:
            self._overrun = True
            self.leave()
            item = RequestCancelledError(
                f"request cancelled: its reader left {limit} events unread while more came"
            )
        self._queue.put_nowait(item)

    async def get(self) -> Event | ScoreResult:
        """The next item. Raises: BraidError, if that is what it is."""
        item = await self._queue.get()
        if isinstance(item, BraidError):
            raise item
        return item

    def leave(self) -> None:
        """Nothing more is wanted; harmless if all has come."""
        self._left.set()
        # An id may be used again once its request has ended: that would not be ours to cancel.
        if self._accepted_id is not None and not self._ended:
            self._engine.cancel(self._accepted_id)
