"""A braid that answers from a script, and remembers what became of its requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from models import byte_tokenizer

from braid_fusion.deciding import Predicate
from braid_fusion.plan import BraidPlan, PlanPoint, PlanShard
from braid_orchestrator.deciding import AskedT, Deciding
from braid_orchestrator.engine.engine import EngineStats
from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    GenerateRequest,
    RequestTimings,
    ScoreRequest,
    ScoreResult,
    Started,
    TokenEvent,
    TopLogprob,
    UseBraiding,
)
from braid_orchestrator.engine.text import TextCodec
from braid_orchestrator.serving.service import BraidDescription
from braid_orchestrator.serving.shard_text import ShardText
from braid_rpc.cards import ChatFormat, ShardCard
from braid_rpc.errors import (
    BraidError,
    ConflictError,
    ContextLengthError,
    NotFoundError,
    UnknownVersionError,
)
from braid_rpc.fusion_client import PointMetrics
from braid_rpc.publishing import PublishedVersion
from braid_rpc.stability import ChoiceStability, TokenStability

TOKEN_STABILITY = TokenStability(1.5, None, 0.75, 0.25)
CHOICE_STABILITY = ChoiceStability(1.5, 0.25, None, 0.125, False)
WORDS = ("one", " two", " three")
CHAT_TEMPLATE = r"""{{ mood }}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{ raise_exception("no role 'tool' here") }}{% endif %}
{{- '\n' + message.role + ': ' + message.content }}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"""


class FakeService:
    """Each choice is `WORDS`, its last word held back until the end. ``hang`` stops after the first token."""

    def __init__(self) -> None:
        self.name = "pair"
        self.requests: list[GenerateRequest] = []
        self.scored: list[ScoreRequest] = []
        self.texts_asked: list[str | None] = []
        self.undecided: list[GenerateRequest | ScoreRequest] = []
        self.default: UseBraiding = True
        self.decider: Predicate | None = None
        self.closed = 0
        self.hang = False
        self.error: BraidError | Exception | None = None
        self.error_after_first: BraidError | Exception | None = None
        self.not_ready: BraidError | None = None
        self.version = "v1"
        self.published: list[tuple[str, bytes, str, bool]] = []
        self.store_up: bool | None = True
        self.callers: list[str] = []
        self.too_many: BraidError | None = None
        self.orphaned: dict[str, GenerateRequest] = {}
        self.chat_template = CHAT_TEMPLATE
        self.first_token = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def plan(self) -> BraidPlan:
        return BraidPlan(
            tuple(PlanShard(name, 16, 4, 262, "0" * 16, "1" * 16) for name in ("left", "right")), 0, ()
        )

    async def decide(self, request: AskedT) -> AskedT:
        self.undecided.append(request)
        return Deciding(self.plan, self.text().decode, self.default, self.decider).settle(request)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        try:
            yield Started(request.request_id or "made-up", 2, self.version)
            for number, word in enumerate(WORDS[: request.sampling.max_tokens]):
                for index in range(request.n):
                    text = "" if number == len(WORDS) - 1 else word
                    yield TokenEvent(
                        index,
                        10 + number,
                        text,
                        *self._logprobs(request),
                        weights={"left": 0.75, "right": 0.25},
                        stability=TOKEN_STABILITY if request.stability else None,
                    )
                self.first_token.set()
                if self.error_after_first is not None:
                    raise self.error_after_first
                if self.hang:
                    await asyncio.Event().wait()
            for index in range(request.n):
                cut = request.sampling.max_tokens < len(WORDS)
                reason: FinishReason = "length" if cut else "stop"
                if request.stability and request.stability.stop:
                    reason = "instability"
                told = CHOICE_STABILITY if request.stability else None
                yield ChoiceFinished(index, reason, None, "" if cut else WORDS[-1], told)
            yield Finished(
                2, request.n * min(len(WORDS), request.sampling.max_tokens), RequestTimings(0.1, 0.2, 0.3)
            )
        finally:
            self.closed += 1
            self.ended.set()

    def _logprobs(self, request: GenerateRequest) -> Sequence[object]:
        if request.sampling.logprobs is None:
            return (None, ())
        return (-0.5, (TopLogprob(99, "other", float("-inf")),) if request.sampling.logprobs else ())

    async def score(self, request: ScoreRequest) -> ScoreResult:
        self.scored.append(request)
        if not request.prompt:
            raise ContextLengthError("prompt: got nothing")
        top = (TopLogprob(7, "x", -0.5), TopLogprob(8, "x", -0.7))
        tops = ((), top, top) if request.top_logprobs else ()
        return ScoreResult((1, 2, 3), ("a", "b", "c"), (0.0, -1.0, -2.0), 3, tops)

    async def admit(self, caller: str) -> None:
        self.callers.append(caller)
        if self.too_many is not None:
            raise self.too_many

    async def resume(self, request_id: str) -> tuple[GenerateRequest, AsyncIterator[Event]]:
        request = self.orphaned.pop(request_id, None)
        if request is None:
            raise NotFoundError(f"request {request_id!r}: no journal of it")
        return request, self.generate(request)

    async def orphans(self) -> list[str]:
        return list(self.orphaned)

    def text(self, shard: str | None = None) -> ShardText:
        self.texts_asked.append(shard)
        codec = TextCodec(byte_tokenizer().backend_tokenizer.to_str())
        return ShardText(
            shard_card(shard or "left"), codec, ChatFormat(self.chat_template, {"eos_token": "<eos>"})
        )

    def describe(self) -> BraidDescription:
        return BraidDescription(
            self.name,
            "left",
            (shard_card("left"), shard_card("right")),
            (PlanPoint("1", (1, 2), "mlp", 16, "residual", (0, 1)),),
            "gate",
            self.version,
            64,
        )

    def cancel(self, request_id: str) -> bool:
        return request_id == "known"

    def ready(self) -> None:
        if self.not_ready is not None:
            raise self.not_ready

    async def activate(self, version: str) -> str:
        if version != "v2":
            raise UnknownVersionError(f"version: got {version!r}, expected one of: v1, v2")
        self.version = version
        return version

    @property
    def max_publish_bytes(self) -> int:
        return 20_000

    async def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        if version == "v1":
            raise ConflictError(f"version: got {version!r}, which is there already")
        self.published.append((card_json, data, version, activate))
        self.version = version or "picked" if activate else self.version
        return PublishedVersion(version or "picked", self.version, True)

    def point_metrics(self) -> Sequence[PointMetrics]:
        return [PointMetrics("1", "mlp", 7, {"weight/left": 0.75, "gate/right": 0.5, "router_entropy": 0.1})]

    def store_answers(self) -> bool | None:
        return self.store_up

    def stats(self) -> EngineStats:
        return EngineStats(1, 2, 3, 4, 5, {"left": 10, "right": 20}, {"left": 100, "right": 100})


def shard_card(name: str) -> ShardCard:
    return ShardCard(
        name=name,
        model_id=f"models/{name}",
        model_hash="0" * 16,
        family="llama",
        num_layers=4,
        width=16,
        vocab_size=262,
        tokenizer_hash="1" * 16,
        dtype="float32",
        context_length=64,
        cache_bytes_total=100,
        cache_bytes_free=50,
        block_tokens=8,
        num_parameters=1000,
    )
