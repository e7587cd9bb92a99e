"""Processes of a braid under measurement: shards and fusion modules as services, and engines over them."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from braid_orchestrator.assembly import assemble_local, assemble_remote
from braid_orchestrator.bench.pair import NAMES, ModelSize, make_backend, settle_memory
from braid_orchestrator.config.values import BraidConfig, PointConfig, ReadoutConfig
from braid_orchestrator.engine.requests import (
    Event,
    Finished,
    GenerateRequest,
    SamplingOptions,
    ScoreResult,
    TokenEvent,
)
from braid_orchestrator.engine.trace import Recording
from braid_orchestrator.serving.service import BraidService
from braid_rpc.errors import BraidError
from braid_services.fusion.main import serve_fusion
from braid_services.serving import RunningServer
from braid_services.shard.config import ShardConfig
from braid_services.shard.main import serve_backend

DECODE_TIMEOUT_S = 600.0

Placement = Literal["in process", "embedded", "service"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A braid to be measured: where its parts are, and what its fusion modules do at ``num_points`` depths."""

    placement: Placement
    readout: Literal["anchor", "mixture", "gate"]
    strategy: str
    fusion_width: int
    num_points: int = 4

    def config(self) -> BraidConfig:
        """The braid's configuration, without its models."""
        return BraidConfig(
            name="bench",
            anchor=NAMES[0],
            shards=tuple(ShardConfig(name=name, model=name) for name in NAMES),
            points=tuple(
                PointConfig(
                    at=(index + 1) / (self.num_points + 1),
                    strategy=self.strategy,
                    fusion_width=self.fusion_width,
                )
                for index in range(self.num_points)
            ),
            readout=ReadoutConfig(self.readout),
        )


@dataclass(frozen=True, slots=True)
class BraidDecoded:
    """A decode of the braid: tokens of the steps after the prompt, when each was there, and where the time went."""

    start_s: float
    token_ids: list[int]
    picked_s: list[float]
    recording: Recording

    @property
    def seconds(self) -> float:
        """From the first step after the prompt to the last."""
        return self.picked_s[-1] - self.start_s


@dataclass(frozen=True, slots=True)
class BraidPrefilled:
    """A prompt read by the braid: when it was handed in, when its first token was there, and where the time went."""

    start_s: float
    picked_s: float
    recording: Recording

    @property
    def seconds(self) -> float:
        """From the one to the other."""
        return self.picked_s - self.start_s


class ShardHost:
    """One shard of the pair as a service."""

    def __init__(self, index: int, size: ModelSize, target: str) -> None:
        torch.set_num_threads(1)
        self._server: RunningServer = serve_backend(make_backend(index, size), [target])
        settle_memory(1)

    def stop(self) -> None:
        """End the service."""
        self._server.stop()


class FusionHost:
    """Fusion services, each for one braid."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._servers = [serve_fusion(None, None, [target]) for target in targets]
        settle_memory(1)

    def stop(self) -> None:
        """End the services."""
        for server in self._servers:
            server.stop()


class EngineHost:
    """Engines of several braids, one process; only one of them is asked at a time."""

    def __init__(
        self,
        variants: Mapping[str, Variant],
        size: ModelSize,
        shard_targets: Mapping[str, str],
        fusion_targets: Mapping[str, str],
    ) -> None:
        torch.set_num_threads(1)
        self._services: dict[str, BraidService] = {}
        backends = None
        if any(variant.placement == "in process" for variant in variants.values()):
            backends = [make_backend(index, size) for index in range(len(NAMES))]
        try:
            for key, variant in variants.items():
                if variant.placement == "in process":
                    service = assemble_local(variant.config(), backends)
                else:
                    fusion = fusion_targets.get(key)
                    service = assemble_remote(
                        variant.config(),
                        {name: partial(str, target) for name, target in shard_targets.items()},
                        None if fusion is None else partial(str, fusion),
                    )
                self._services[key] = service
        except BaseException:
            self.stop()
            raise
        settle_memory(1)

    def prefill(self, key: str, prompt: tuple[int, ...]) -> BraidPrefilled:
        """Read a prompt, up to the next token. Raises: BraidError."""
        engine = self._services[key].engine
        recording = Recording()
        picked_s: list[float] = []
        end: queue.SimpleQueue[BraidError | None] = queue.SimpleQueue()

        def take(event: Event | ScoreResult | BraidError) -> None:
            if isinstance(event, TokenEvent):
                picked_s.append(time.perf_counter())
            elif isinstance(event, BraidError | Finished):
                end.put(event if isinstance(event, BraidError) else None)

        engine.trace.recording = recording
        start_s = time.perf_counter()
        engine.submit(GenerateRequest(prompt, SamplingOptions(max_tokens=1, temperature=0.0)), take)
        error = end.get(timeout=DECODE_TIMEOUT_S)
        engine.trace.recording = None
        if error is not None:
            raise error
        return BraidPrefilled(start_s, picked_s[0], recording)

    def decode(self, key: str, prompt: tuple[int, ...], num_tokens: int) -> BraidDecoded:
        """``num_tokens`` greedy decode steps after the prompt. Raises: BraidError."""
        engine = self._services[key].engine
        times: list[float] = []
        picked: list[int] = []
        recording = Recording()
        end: queue.SimpleQueue[BraidError | None] = queue.SimpleQueue()

        def take(event: Event | ScoreResult | BraidError) -> None:
            """In the engine's thread. Nobody is woken before the end."""
            if isinstance(event, TokenEvent):
                times.append(time.perf_counter())
                picked.append(event.token_id)
                if len(times) == 1:
                    engine.trace.recording = recording  # the prompt's step doesn't count
            elif isinstance(event, BraidError):
                end.put(event)
            elif isinstance(event, Finished):
                end.put(None)

        sampling = SamplingOptions(max_tokens=num_tokens + 1, temperature=0.0, ignore_eos=True)
        engine.submit(GenerateRequest(prompt, sampling), take)
        error = end.get(timeout=DECODE_TIMEOUT_S)
        engine.trace.recording = None
        if error is not None:
            raise error
        return BraidDecoded(times[0], picked[1:], times[1:], recording)

    def stop(self) -> None:
        """End the engines."""
        for service in self._services.values():
            service.stop()
