"""One choice of one request while it lives: its tokens, how far its caches are, its text. Knows no shards.

A `Request` is what a user asked for; it has ``n`` choices, or is one text to be scored. Each is a `Sequence`,
which the engine runs as one session on every shard of its route. Everything needed to start again elsewhere
(tokens so far, random generator, text given out) stands here, so a lost cache costs time only.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from braid_orchestrator.engine.lanes import WovenText
from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    FinishReason,
    RequestTimings,
    SamplingOptions,
    ScoreResult,
    TokenEvent,
    TopLogprob,
)
from braid_orchestrator.engine.sampling import Pick, Sampler
from braid_orchestrator.engine.step_shares import StepShare
from braid_orchestrator.engine.text import IncrementalDecoder, StopScanner, TextCodec
from braid_orchestrator.engine.watching import Watch
from braid_rpc.errors import BraidError
from braid_rpc.stability import StabilityOptions, TokenStability

Sink = Callable[[Event | ScoreResult | BraidError], None]

# The route of a sequence: all shards braided, or one shard alone (its index in the plan).
BRAIDED = -1

_incarnations = itertools.count()


class Request:
    """What a user asked for, and where its events go. ``cancelled`` may be set from any thread."""

    def __init__(
        self, request_id: str, sink: Sink, num_choices: int, prompt_tokens: int, timeout_s: float
    ) -> None:
        self.request_id = request_id
        self.sink = sink
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.num_choices = num_choices
        self.unfinished = num_choices
        self.steps: StepShare | None = None
        self.cancelled = False
        self.ended = False
        self.started = False
        self.arrived_s = time.monotonic()
        self.deadline_s = self.arrived_s + timeout_s
        self.timeout_s = timeout_s
        self._admitted_s: float | None = None
        self._first_token_s: float | None = None

    def note_admission(self) -> None:
        """The first choice got its sessions."""
        if self._admitted_s is None:
            self._admitted_s = time.monotonic()

    def note_token(self) -> None:
        """A token was picked."""
        self.completion_tokens += 1
        if self._first_token_s is None:
            self._first_token_s = time.monotonic()

    def timings(self) -> RequestTimings:
        """Up to now."""
        now = time.monotonic()
        first_s = self._first_token_s or now
        steps = per_token_s = None
        if self.steps is not None:
            steps = self.steps.times()
            later_tokens = self.completion_tokens / self.num_choices - 1
            per_token_s = (now - first_s) / later_tokens if later_tokens > 0 else None
        return RequestTimings(
            queue_s=(self._admitted_s or now) - self.arrived_s,
            time_to_first_token_s=first_s - self.arrived_s,
            total_s=now - self.arrived_s,
            time_per_output_token_s=per_token_s,
            steps=steps,
        )


@dataclass(eq=False)
class Sequence:
    """Tokens of one choice. ``num_cached`` of them are in the shards' caches; the rest is to be run.
    ``weights_version`` is the one it started with, and keeps when it has to start again. ``woven`` holds what
    shards with other tokenizers read, where there are any."""

    request: Request
    index: int
    route: int
    token_ids: list[int]
    session_id: str = ""
    num_cached: int = 0
    num_recoveries: int = 0
    weights_version: str = ""
    woven: WovenText | None = None

    def renew_session(self) -> None:
        """A new name for new sessions on all shards: nothing is cached there yet."""
        self.session_id = f"{self.request.request_id}.{self.index}.{next(_incarnations)}"
        self.num_cached = 0

    def room(self, lane: int) -> int:
        """Tokens to make room for in a lane's shards when its sessions are opened."""
        return len(self.token_ids) if lane == 0 or self.woven is None else self.woven.num_tokens(lane)

    def fitting_rows(self, num_rows: int, max_rows: int) -> tuple[int, int]:
        """How many of the next rows there can be with at most ``max_rows`` in any lane (one at least), and how many
        that makes in the largest."""
        if self.woven is None:
            return num_rows, num_rows
        return self.woven.fitting_rows(self.num_cached, num_rows, max_rows)

    @property
    def num_pending(self) -> int:
        """Tokens that are not in the caches yet."""
        return len(self.token_ids) - self.num_cached

    @property
    def wants_row_metrics(self) -> bool:
        """Whether fusion points are to tell of the rows that need logits."""
        return False

    def wanted_rows(self, num_rows: int) -> range:
        """Which of the next ``num_rows`` rows need logits."""
        raise NotImplementedError


@dataclass(eq=False)
class GeneratedSequence(Sequence):
    """A choice that grows."""

    sampler: Sampler = field(kw_only=True)
    options: SamplingOptions = field(kw_only=True)
    decoder: IncrementalDecoder = field(kw_only=True)
    scanner: StopScanner = field(kw_only=True)
    eos_token_ids: frozenset[int] = field(kw_only=True)
    watch: Watch | None = field(kw_only=True, default=None)
    num_generated: int = 0

    @classmethod
    def begin(
        cls,
        request: Request,
        index: int,
        route: int,
        prompt_ids: tuple[int, ...],
        options: SamplingOptions,
        codec: TextCodec,
        eos_token_ids: frozenset[int],
        woven: WovenText | None = None,
        stability: StabilityOptions | None = None,
    ) -> GeneratedSequence:
        """Choice ``index`` of a request, before its first step."""
        return cls(
            request=request,
            index=index,
            route=route,
            token_ids=list(prompt_ids),
            woven=None if woven is None else woven.copy(),
            sampler=Sampler(options, prompt_ids, eos_token_ids, index),
            options=options,
            decoder=IncrementalDecoder(codec, prompt_ids),
            scanner=StopScanner(options.stop),
            eos_token_ids=eos_token_ids,
            watch=None if stability is None else Watch(stability, options.temperature),
        )

    @property
    def wants_row_metrics(self) -> bool:
        """If it is watched."""
        return self.watch is not None

    def room(self, lane: int) -> int:
        """All that there are, and the next, if its shards can hold that."""
        room = super().room(lane) + 1
        return room if lane == 0 or self.woven is None else min(room, self.woven.limits[lane])

    def wanted_rows(self, num_rows: int) -> range:
        """Only the last token's logits, and only once nothing is pending behind it."""
        return range(num_rows - 1, num_rows) if num_rows == self.num_pending else range(0)

    def extend(
        self, pick: Pick, weights: dict[str, float], codec: TextCodec, stability: TokenStability | None = None
    ) -> tuple[TokenEvent, ChoiceFinished | None]:
        """Append a picked token; says what to report and whether this ends the choice."""
        self.token_ids.append(pick.token_id)
        if self.woven is not None:
            self.woven.push(pick.token_id)
        self.num_generated += 1
        self.request.note_token()
        text = self.decoder.push(pick.token_id)
        stop: str | None = None
        if self.num_generated > self.options.min_tokens:
            text, stop = self.scanner.push(text)
        finished = self._finish(pick.token_id, stop)
        event = TokenEvent(
            index=self.index,
            token_id=pick.token_id,
            text=text,
            logprob=pick.logprob,
            top_logprobs=tuple(TopLogprob(i, codec.token_name(i), logprob) for i, logprob in pick.top),
            weights=weights,
            stability=stability,
        )
        return event, finished

    def replay(self, event: TokenEvent, codec: TextCodec) -> ChoiceFinished | None:
        """As if this token had been picked here: says whether it ends the choice."""
        self.sampler.replay(event.token_id)
        if self.watch is not None and event.stability is not None:
            self.watch.replay(event.stability)
        return self.extend(Pick(event.token_id), {}, codec)[1]

    def _finish(self, token_id: int, stop: str | None) -> ChoiceFinished | None:
        finished = self._ending(token_id, stop)
        if finished is None or self.watch is None:
            return finished
        return replace(finished, stability=self.watch.summary())

    def _ending(self, token_id: int, stop: str | None) -> ChoiceFinished | None:
        if stop is not None:
            return ChoiceFinished(self.index, "stop", stop)
        reason: FinishReason
        stop_reason: int | None = None
        if token_id in self.eos_token_ids and not self.options.ignore_eos:
            reason = "stop"
        elif token_id in self.options.stop_token_ids:
            reason, stop_reason = "stop", token_id
        elif self.num_generated >= self.options.max_tokens or (self.woven is not None and self.woven.is_full):
            reason = "length"
        elif (
            self.watch is not None and self.watch.has_to_end and self.num_generated >= self.options.min_tokens
        ):
            reason = "instability"
        else:
            return None
        tail, stop = self.scanner.push(self.decoder.flush())
        if stop is not None:
            return ChoiceFinished(self.index, "stop", stop, tail)
        return ChoiceFinished(self.index, reason, stop_reason, tail + self.scanner.flush())


@dataclass(eq=False)
class ScoredSequence(Sequence):
    """A text whose tokens' log-probabilities are collected, at most ``max_rows`` in a step, and ``num_top``
    alternatives of each as (token id, log-probability). ``num_bytes`` is the UTF-8 length of the text that has
    log-probabilities: all but the first token's."""

    max_rows: int = 1
    num_bytes: int = 0
    num_top: int = 0
    top: list[list[tuple[int, float]]] = field(default_factory=lambda: [[]])
    logprobs: list[float] = field(default_factory=lambda: [0.0])

    def wanted_rows(self, num_rows: int) -> range:
        """Every row but the text's last, whose next token isn't part of it; after a lost cache, only the rest."""
        first = max(len(self.logprobs) - 1 - self.num_cached, 0)
        last = num_rows - 1 if num_rows == self.num_pending else num_rows
        return range(min(first, last), last)
