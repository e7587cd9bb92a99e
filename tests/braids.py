"""Braids over tiny models, in process or over real gRPC, and an oracle that knows neither engine nor caches."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from models import tiny_backend
from torch import Tensor

from braid_fusion.context import FusionContext
from braid_fusion.mixing import logit_features, mix_logits
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_orchestrator import BraidedLLM
from braid_orchestrator.assembly import assemble_local, assemble_remote, resolve_plan
from braid_orchestrator.config.schema import load_braid_config
from braid_orchestrator.config.values import (
    BraidConfig,
    FusionConfig,
    LimitsConfig,
    PointConfig,
    ReadoutConfig,
)
from braid_orchestrator.engine.engine import Engine
from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    Finished,
    GenerateRequest,
    SamplingOptions,
    ScoreRequest,
    ScoreResult,
    TokenEvent,
)
from braid_orchestrator.serving.service import BraidService
from braid_rpc.errors import BraidError
from braid_rpc.stability import ChoiceStability, TokenStability
from braid_services.fusion.main import serve_fusion
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.main import serve_backend

WAIT_S = 60.0
TRANSPORTS = ("in process", "grpc, fusion embedded", "grpc, fusion service")


def braid_config(
    *,
    points: Sequence[PointConfig] = (PointConfig(at=1, strategy="mlp"), PointConfig(at=2, strategy="router")),
    readout: ReadoutConfig = ReadoutConfig("gate"),
    weights: Path | None = None,
    limits: LimitsConfig = LimitsConfig(),
    placement: str = "embedded",
    names: Sequence[str] = ("left", "right"),
) -> BraidConfig:
    return BraidConfig(
        name="tiny",
        anchor=names[0],
        shards=tuple(ShardConfig(name=name, model=name) for name in names),
        points=tuple(points),
        readout=readout,
        fusion=FusionConfig(placement=placement, weights=str(weights) if weights else None),
        limits=limits,
    )


def two_backends(**options: int) -> list[ShardBackend]:
    """Different widths, different depths, one tokenizer."""
    return [
        tiny_backend("left", 1, width=32, num_layers=3, **options),
        tiny_backend("right", 2, width=48, num_layers=4, **options),
    ]


def shaken_weights(
    config: BraidConfig, backends: Sequence[ShardBackend], folder: Path, *, seed: int = 3
) -> Path:
    """A weights version whose fusion modules do something: every parameter is moved off its start."""
    from braid_fusion.weights import save_stack

    stack = FusionStack(resolve_plan(config, [backend.card for backend in backends]))
    shake(stack, seed)
    save_stack(stack, folder / f"v{seed}", {"note": "random"})
    return folder


def shake(trained: FusionStack | BraidedLLM, seed: int, by: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def shaken(braided: BraidedLLM) -> BraidedLLM:
    """With modules as if trained."""
    shake(braided, 5, by=0.2)
    return braided


@dataclass
class Result:
    text: str
    token_ids: list[int]
    weights: list[dict[str, float]]
    logprobs: list[float | None]
    finish_reason: str
    stop_reason: str | int | None
    stability: list[TokenStability | None] = field(default_factory=list)
    summary: ChoiceStability | None = None


class Client:
    """Blocking calls on an engine."""

    def __init__(self, engine: Engine, service: BraidService) -> None:
        self.engine = engine
        self.service = service

    def submit(self, prompt: str | tuple[int, ...], **options: object) -> queue.Queue[Event | BraidError]:
        events: queue.Queue[Event | BraidError] = queue.Queue()
        names = {"n", "use_braiding", "shard", "timeout_s", "request_id", "stability"}
        request = {key: options.pop(key) for key in list(options) if key in names}
        self.engine.submit(
            GenerateRequest(prompt, SamplingOptions(**options), **request),  # type: ignore[arg-type]
            events.put,
        )
        return events

    def generate(self, prompt: str | tuple[int, ...], **options: object) -> Result:
        return self.results(self.submit(prompt, **options))[0]

    @staticmethod
    def results(events: queue.Queue[Event | BraidError]) -> list[Result]:
        found: dict[int, Result] = {}
        while True:
            event = events.get(timeout=WAIT_S)
            if isinstance(event, BraidError):
                raise event
            if isinstance(event, TokenEvent):
                result = found.setdefault(event.index, Result("", [], [], [], "", None))
                result.text += event.text
                result.token_ids.append(event.token_id)
                result.weights.append(dict(event.weights))
                result.logprobs.append(event.logprob)
                result.stability.append(event.stability)
            elif isinstance(event, ChoiceFinished):
                found[event.index].text += event.text
                found[event.index].finish_reason = event.finish_reason
                found[event.index].stop_reason = event.stop_reason
                found[event.index].summary = event.stability
            elif isinstance(event, Finished):
                return [found[index] for index in sorted(found)]

    def score(self, prompt: str | tuple[int, ...], **options: object) -> ScoreResult:
        answers: queue.Queue[ScoreResult | BraidError] = queue.Queue()
        self.engine.submit_score(ScoreRequest(prompt, **options), answers.put)  # type: ignore[arg-type]
        answer = answers.get(timeout=WAIT_S)
        if isinstance(answer, BraidError):
            raise answer
        return answer


@contextmanager
def running(
    config: BraidConfig, backends: Sequence[ShardBackend], transport: str, sockets: Path
) -> Iterator[Client]:
    """A braid up and running over one of the transports."""
    servers = []
    try:
        if transport == "in process":
            service = assemble_local(config, backends)
        else:
            targets = {}
            for backend in backends:
                server = serve_backend(backend, [f"unix:{sockets / backend.card.name}.sock"])
                servers.append(server)
                targets[backend.card.name] = lambda target=server.targets[0]: target
            fusion = None
            if transport == "grpc, fusion service":
                server = serve_fusion(
                    config.fusion.weights,
                    config.fusion.version,
                    [f"unix:{sockets}/fusion.sock"],
                    imports=config.fusion.imports,
                )
                servers.append(server)
                fusion = lambda target=server.targets[0]: target  # noqa: E731
            service = assemble_remote(config, targets, fusion)
        try:
            yield Client(service._engine, service)
        finally:
            service.stop()
    finally:
        for server in servers:
            server.stop()


def oracle_log_probs(
    plan: BraidPlan, stack: FusionStack, backends: Sequence[ShardBackend], token_ids: Sequence[int]
) -> Tensor:
    """(T, V) log-probabilities of a whole text at once, by hand: no engine, no cache, no packing."""
    ids = torch.tensor(token_ids)
    length = [len(token_ids)]
    with torch.inference_mode():
        forwards = [backend.forward(ids, length) for backend in backends]
        hidden = [forward.run_to(layer) for forward, layer in zip(forwards, _layers(plan, 0), strict=True)]
        for point in range(len(plan.points)):
            output = stack.fuse(point, hidden, FusionContext.whole(length))
            hidden = [own if new is None else new for own, new in zip(hidden, output.states, strict=True)]
            if point + 1 < len(plan.points):
                hidden = [
                    forward.resume(state, layer)
                    for forward, state, layer in zip(forwards, hidden, _layers(plan, point + 1), strict=True)
                ]
        ends = [forward.finish(state) for forward, state in zip(forwards, hidden, strict=True)]
        logits = [end[1] for end in ends]
        log_weights = stack.read_out([end[0] for end in ends], logit_features(logits))
        return mix_logits(logits, log_weights)


def _layers(plan: BraidPlan, point: int) -> tuple[int, ...]:
    return plan.points[point].layers


async def local_tokens(config: BraidConfig | Path, prompt: str, sampling: Mapping[str, Any]) -> list[int]:
    """What a braid, or the one that a file describes, gives in this one process."""
    local = assemble_local(load_braid_config(config) if isinstance(config, Path) else config)
    try:
        request = GenerateRequest(prompt, SamplingOptions(**sampling))
        return [event.token_id async for event in local.generate(request) if isinstance(event, TokenEvent)]
    finally:
        local.stop()
