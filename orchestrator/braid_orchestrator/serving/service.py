"""The braid as its front ends see it: asynchronous, by requests and events. Knows the engine, no transport."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from braid_fusion.plan import PlanPoint
from braid_orchestrator.engine.engine import Engine, EngineStats
from braid_orchestrator.engine.requests import Event, Finished, GenerateRequest, ScoreRequest, ScoreResult
from braid_orchestrator.serving.shard_text import ShardText
from braid_rpc.cards import ShardCard
from braid_rpc.errors import BraidError, RequestCancelledError, UnknownShardError

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

    def __init__(self, engine: Engine, texts: Sequence[ShardText]) -> None:
        """``texts``: one per shard."""
        self._engine = engine
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
        request = replace(request, request_id=request.request_id or uuid.uuid4().hex)
        inbox = _Inbox(self._engine)
        try:
            await inbox.submit(lambda: self._engine.submit(request, inbox.put))
            while True:
                item = await inbox.get()
                if isinstance(item, ScoreResult):
                    raise TypeError("a generation request was answered with a score")
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            inbox.leave()

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Log-probabilities of a text. Raises: BraidError."""
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
        await asyncio.to_thread(self._engine.activate, version)
        return self._engine.weights_version

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

    def stop(self) -> None:
        """Stop the engine; blocks until its thread has ended."""
        self._engine.stop()


class _Inbox:
    """What the engine's thread has for one task of an event loop. Whoever leaves early cancels the request, be
    it before, while or after the engine takes it in."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
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
        if self._queue.qsize() >= MAX_UNREAD_EVENTS:
            self._overrun = True
            self.leave()
            item = RequestCancelledError(
                f"request cancelled: its reader left {MAX_UNREAD_EVENTS} events unread while more came"
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
