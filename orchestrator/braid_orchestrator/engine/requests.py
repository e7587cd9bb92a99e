"""What users ask for and what they get, as plain values; the same for HTTP, gRPC and Python.

Knows neither a transport nor the engine. `validate` refuses whatever can be judged from the request alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from braid_rpc.errors import InvalidRequestError
from braid_rpc.stability import ChoiceStability, StabilityOptions, TokenStability
from braid_rpc.step_times import StepTimes

UseBraiding = bool | Literal["auto"] | None
"""Whether the braid answers, or one shard alone. "auto": what is configured decides; None: the service's default."""

MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is picked and when to stop; names and defaults as in other completion services.

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 are off. ``logprobs`` is the number of
    alternatives reported per token (0: the chosen one only; None: no log-probabilities).
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def validate(self) -> None:
        """Raises: InvalidRequestError, naming the option, what it got and what is allowed."""

        def check(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise InvalidRequestError(f"{name}: got {getattr(self, name)!r}, expected {expected}")

        check(self.max_tokens >= 1, "max_tokens", "at least 1")
        check(
            0 <= self.min_tokens <= self.max_tokens,
            "min_tokens",
            f"between 0 and max_tokens ({self.max_tokens})",
        )
        check(0.0 <= self.temperature <= 100.0, "temperature", "between 0 (greedy) and 100")
        check(self.top_k >= 0, "top_k", "0 (off) or a positive number")
        check(0.0 < self.top_p <= 1.0, "top_p", "in (0, 1]")
        check(0.0 <= self.min_p <= 1.0, "min_p", "in [0, 1]")
        check(0.0 < self.repetition_penalty <= 10.0, "repetition_penalty", "in (0, 10]")
        check(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "in [-2, 2]")
        check(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "in [-2, 2]")
        biases = self.logit_bias.values()
        check(len(biases) <= MAX_LOGIT_BIASES, "logit_bias", f"at most {MAX_LOGIT_BIASES} token ids")
        check(all(-100.0 <= bias <= 100.0 for bias in biases), "logit_bias", "numbers between -100 and 100")
        check(self.seed is None or 0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1")
        check(all(self.stop), "stop", "strings that are not empty")
        check(len(self.stop) <= 16, "stop", "at most 16 strings")
        check(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            "logprobs",
            f"between 0 and {MAX_LOGPROBS}",
        )


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """``prompt`` is text or token ids of the anchor. ``shard`` (only with ``use_braiding`` false) says which
    shard answers alone; None is the anchor. ``timeout_s`` None: the service's own limit. ``timings``: where the
    time went is to be told in full. ``stability``: each choice is to be watched; None: none is."""

    prompt: str | tuple[int, ...]
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    request_id: str = ""
    n: int = 1
    use_braiding: UseBraiding = True
    shard: str | None = None
    timeout_s: float | None = None
    timings: bool = False
    stability: StabilityOptions | None = None

    def validate(self) -> None:
        """Raises: InvalidRequestError, naming the field."""
        self.sampling.validate()
        if self.stability is not None:
            self.stability.validate()
        _check_asked(self.prompt, self.use_braiding, self.shard, self.timeout_s)
        if not 1 <= self.n <= 64:
            raise InvalidRequestError(f"n: got {self.n}, expected between 1 and 64")


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """An alternative that the model considered."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted."""

    request_id: str
    prompt_tokens: int
    weights_version: str


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of choice ``index``. ``text`` is what became certain with it: perhaps nothing, never half a
    character. ``weights`` are the readout's mixing weights of the shards' distributions at this token, by shard
    name (they sum to one). ``stability`` only where it was asked for."""

    index: int
    token_id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    stability: TokenStability | None = None


FinishReason = Literal["stop", "length", "instability"]


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """Choice ``index`` is complete. ``text`` is what had been held back; ``stop_reason`` the stop string or
    token id that ended it, None for the end-of-text token, the length or instability. ``stability`` only where it was
    asked for."""

    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    text: str = ""
    stability: ChoiceStability | None = None


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """In seconds since the request came in, except ``queue_s``, which is how long it waited.

    Only for those who ask: ``time_per_output_token_s``, the mean time between two tokens of a choice (None for one
    token), and ``steps``, where the time of the request's steps went.
    """

    queue_s: float
    time_to_first_token_s: float
    total_s: float
    time_per_output_token_s: float | None = None
    steps: StepTimes | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """All choices are complete; nothing follows."""

    prompt_tokens: int
    completion_tokens: int
    timings: RequestTimings


Event = Started | TokenEvent | ChoiceFinished | Finished


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text whose log-probability is wanted; the fields are those of `GenerateRequest`. ``top_logprobs`` is
    the number of alternatives reported per token."""

    prompt: str | tuple[int, ...]
    use_braiding: UseBraiding = True
    shard: str | None = None
    timeout_s: float | None = None
    top_logprobs: int = 0

    def validate(self) -> None:
        """Raises: InvalidRequestError, naming the field."""
        _check_asked(self.prompt, self.use_braiding, self.shard, self.timeout_s)
        if not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise InvalidRequestError(
                f"top_logprobs: got {self.top_logprobs}, expected between 0 and {MAX_LOGPROBS}"
            )


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """``logprobs[i]`` is the natural log-probability of token i given those before; the first has none: 0.

    ``top_logprobs[i]``, where they were asked for, are the likeliest tokens at its place, likeliest first; none
    for the first.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    num_bytes: int
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()

    @property
    def bits_per_byte(self) -> float:
        """−log₂ of the text's probability behind its first token, per byte of it; NaN where there is none."""
        return -math.fsum(self.logprobs) / math.log(2) / self.num_bytes if self.num_bytes else math.nan


def _check_asked(
    prompt: str | tuple[int, ...], use_braiding: UseBraiding, shard: str | None, timeout_s: float | None
) -> None:
    if not prompt:
        raise InvalidRequestError("prompt: got an empty prompt, expected at least one character or token id")
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise InvalidRequestError(f"timeout_s: got {timeout_s}, expected a positive number of seconds")
    if use_braiding not in (True, False, None, "auto"):
        raise InvalidRequestError(f"use_braiding: got {use_braiding!r}, expected true, false or 'auto'")
    if use_braiding is not False and shard is not None:
        raise InvalidRequestError(f"shard: got {shard!r}, expected use_braiding false together with it")
