"""Text generation by an engine over shards in this process, as a plain blocking call. For notebooks."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from braid_fusion.plan import BraidPlan, PlanShard
from braid_fusion.stack import FusionStack
from braid_orchestrator.config.values import LimitsConfig
from braid_orchestrator.engine.engine import Engine
from braid_orchestrator.engine.lanes import Lanes
from braid_orchestrator.engine.local import LocalFusion, LocalShard
from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    Finished,
    GenerateRequest,
    ScoreRequest,
    ScoreResult,
    TokenEvent,
)
from braid_rpc.errors import BraidError
from braid_rpc.stability import ChoiceStability
from braid_services.fusion.backend import FusionBackend
from braid_services.shard.backend import ShardBackend


@dataclass(frozen=True, slots=True)
class Completion:
    """What came after a prompt. ``weights`` says how much each shard had in it, averaged over its tokens;
    ``answered_by`` names the braid or, with ``braided`` false, the shard that answered alone; ``stability`` says how
    stable it was, if that was asked for."""

    text: str
    tokens: tuple[TokenEvent, ...]
    finish_reason: str
    weights: dict[str, float]
    braided: bool = True
    answered_by: str = ""
    stability: ChoiceStability | None = None


class InProcessBraid:
    """An engine over backends and modules that others own; it ends with this object."""

    def __init__(self, name: str, backends: Sequence[ShardBackend], stack: FusionStack) -> None:
        """Raises: UnsupportedModelError for an anchor without a tokenizer."""
        plan = stack.plan
        fusion = LocalFusion(FusionBackend.from_stack(stack))
        fusion.prepare(plan)
        lanes = Lanes(
            plan, [backend.card for backend in backends], lambda shard: backends[shard].tokenizer_json()
        )
        self._engine = Engine(
            name, [LocalShard(backend) for backend in backends], fusion, plan, lanes, LimitsConfig()
        )
        self._engine.start()
        self.stop = weakref.finalize(self, self._engine.stop)  # at the latest when the program ends

    def stream(self, request: GenerateRequest) -> Iterator[Event]:
        """The request's events, as they come. Leaving early cancels it. Raises: BraidError."""
        inbox: queue.SimpleQueue[Event | ScoreResult | BraidError] = queue.SimpleQueue()
        request_id = self._engine.submit(request, inbox.put)
        item: Event | ScoreResult | BraidError | None = None
        try:
            while True:
                item = inbox.get()
                if isinstance(item, BraidError):
                    raise item
                if isinstance(item, ScoreResult):
                    raise TypeError("a generation request was answered with a score")
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            if not isinstance(item, Finished | BraidError):
                self._engine.cancel(request_id)

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Log-probabilities of a text. Raises: BraidError."""
        inbox: queue.SimpleQueue[Event | ScoreResult | BraidError] = queue.SimpleQueue()
        self._engine.submit_score(request, inbox.put)
        item = inbox.get()
        if isinstance(item, BraidError):
            raise item
        if not isinstance(item, ScoreResult):
            raise TypeError(f"a score request was answered with {type(item).__name__}")
        return item

    def complete(self, request: GenerateRequest, answered_by: str = "") -> Completion:
        """The first choice of a request, whole; ``answered_by`` is noted in it. Raises: BraidError."""
        tokens: list[TokenEvent] = []
        tail, finish_reason, stability = "", "", None
        for event in self.stream(request):
            if isinstance(event, TokenEvent) and event.index == 0:
                tokens.append(event)
            elif isinstance(event, ChoiceFinished) and event.index == 0:
                tail, finish_reason, stability = event.text, event.finish_reason, event.stability
        return Completion(
            text="".join(token.text for token in tokens) + tail,
            tokens=tuple(tokens),
            finish_reason=finish_reason,
            weights=_mean_weights(tokens),
            braided=request.use_braiding is True,
            answered_by=answered_by,
            stability=stability,
        )


def alone(backend: ShardBackend) -> FusionStack:
    """The braid of one shard: no fusion points, its own logits."""
    return FusionStack(BraidPlan(shards=(plan_shard(backend),), anchor=0, points=()))


def plan_shard(backend: ShardBackend) -> PlanShard:
    """A backend as plans describe it."""
    card = backend.card
    return PlanShard(
        card.name, card.width, card.num_layers, card.vocab_size, card.model_hash, card.tokenizer_hash
    )


def _mean_weights(tokens: Sequence[TokenEvent]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for token in tokens:
        for shard, weight in token.weights.items():
            totals[shard] = totals.get(shard, 0.0) + weight / len(tokens)
    return totals
