"""What HTTP, gRPC and the command line need of a running braid. `service.BraidService` is the real one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from braid_orchestrator.engine.requests import Event, GenerateRequest, ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from braid_fusion.plan import BraidPlan
    from braid_orchestrator.deciding import AskedT
    from braid_orchestrator.engine.engine import EngineStats
    from braid_orchestrator.engine.ports import PointMetrics
    from braid_orchestrator.serving.service import BraidDescription
    from braid_orchestrator.serving.shard_text import ShardText
    from braid_rpc.publishing import PublishedVersion


class BraidPort(Protocol):
    """A braid that answers. Every method raises `BraidError`s only."""

    @property
    def name(self) -> str:
        """The braid's name: what a client gives as ``model``."""

    async def decide(self, request: AskedT) -> AskedT:
        """The request saying whether the braid answers or which shard alone; as it is if it says so. `generate` and
        `score` do the same; front ends ask first, to tell who answers."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """Started, then tokens and finished choices, then Finished. Closing it cancels the request."""

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Log-probabilities of a given text. Cancelling the task cancels the request."""

    def text(self, shard: str | None = None) -> ShardText:
        """The tokenizer and the chat template of a shard; None: of the anchor."""

    def describe(self) -> BraidDescription:
        """What the braid is made of."""

    def cancel(self, request_id: str) -> bool:
        """False: no such request is running."""

    def ready(self) -> None:
        """Raises: UnavailableError, saying what is missing."""

    async def activate(self, version: str) -> str:
        """Use another version of the fusion weights for requests from now on; returns its name."""

    @property
    def plan(self) -> BraidPlan:
        """What the braid is built by, and what weights must be made for."""

    @property
    def max_publish_bytes(self) -> int:
        """What the weights of a published version may have; 0: none is taken in."""

    async def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """Take in another version of the fusion weights (empty: under a name that the same weights get again), and
        use it for requests from now on. Whole or not at all; the same again is harmless."""

    async def admit(self, caller: str) -> None:
        """One more request of a caller (an API key, an address). Raises: RateLimitError if these are too many."""

    async def resume(self, request_id: str) -> tuple[GenerateRequest, AsyncGenerator[Event, None]]:
        """Carry on a request whose orchestrator died: what was asked, and its events from the first on."""

    async def orphans(self) -> list[str]:
        """Requests whose orchestrator is gone, and that nobody carries on yet."""

    def stats(self) -> EngineStats:
        """Figures of this moment."""

    def point_metrics(self) -> Sequence[PointMetrics]:
        """What the fusion modules say about themselves. Blocks: not for an event loop."""

    def store_answers(self) -> bool | None:
        """Whether the state store did when last asked; None: it is shared with nobody."""


def as_generator(events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    """A braid's events are an async generator: closing it cancels the request."""
    return cast("AsyncGenerator[Event, None]", events)
