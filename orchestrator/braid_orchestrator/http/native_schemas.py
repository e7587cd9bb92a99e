"""The shapes of the native API: what its routes take and give. `requests` checks the ranges."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from braid_orchestrator.config.kinds import Braided
from braid_orchestrator.engine.requests import (
    GenerateRequest,
    RequestTimings,
    SamplingOptions,
    ScoreRequest,
    UseBraiding,
)
from braid_orchestrator.http.stability_schemas import (
    ChoiceStabilityOut,
    StabilityAsked,
    TokenStabilityOut,
    stability_options,
)
from braid_rpc.errors import InvalidRequestError

Prompt = Annotated[
    str | list[int], Field(description="text, or token ids of the anchor", examples=["def add(a, b):"])
]


UseBraidingField = Annotated[
    Braided | None,
    Field(
        description="false: one shard alone; auto: what is configured decides; null: the service's default"
    ),
]


class Strict(BaseModel):
    """Unknown fields and values of another type are refused, never guessed at."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SamplingFields(Strict):
    """How tokens are picked; the same names in all of the APIs."""

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: Annotated[float, Field(description="0 is greedy")] = 1.0
    top_k: Annotated[int, Field(description="0 is off")] = 0
    top_p: Annotated[float, Field(description="1 is off")] = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Annotated[dict[str, float] | None, Field(description="token id to bias")] = None
    seed: int | None = None
    stop: Annotated[str | list[str] | None, Field(description="strings that end the text")] = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logprobs: Annotated[int | None, Field(description="how many alternatives to report per token")] = None

    def sampling(self, **others: Any) -> SamplingOptions:
        """The same as frozen values, ``others`` instead of those of their names.

        Raises: InvalidRequestError for a token id that is no number.
        """
        values = {name: getattr(self, name) for name in SamplingFields.model_fields} | others
        for token_id in self.logit_bias or {}:
            if not token_id.isdecimal() or len(token_id) > 10:
                raise InvalidRequestError(f"logit_bias: got the key {token_id[:32]!r}, expected a token id")
        values["logit_bias"] = {int(token_id): bias for token_id, bias in (self.logit_bias or {}).items()}
        values["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        values["stop_token_ids"] = tuple(self.stop_token_ids or ())
        return SamplingOptions(**values)


class ModelFields(Strict):
    """Who answers."""

    model: Annotated[str | None, Field(description="the braid, or one of its shards alone")] = None
    use_braiding: UseBraidingField = None
    shard: Annotated[str | None, Field(description="which one, if not the anchor")] = None
    timeout_s: float | None = None


class GenerateBody(SamplingFields, ModelFields):
    """A prompt to go on with."""

    prompt: Prompt
    n: Annotated[int, Field(description="how many choices")] = 1
    request_id: Annotated[str, Field(max_length=128, description="to cancel by; made up if empty")] = ""
    stream: Annotated[bool, Field(description="server-sent events instead of one answer")] = False
    timings: Annotated[bool, Field(description="tell where the time of its steps went")] = False
    stability: StabilityAsked = None

    def request(self, use_braiding: UseBraiding, shard: str | None, request_id: str) -> GenerateRequest:
        """What the engine is asked."""
        return GenerateRequest(
            prompt=self.prompt if isinstance(self.prompt, str) else tuple(self.prompt),
            sampling=self.sampling(),
            request_id=request_id,
            n=self.n,
            use_braiding=use_braiding,
            shard=shard,
            timeout_s=self.timeout_s,
            timings=self.timings,
            stability=stability_options(self.stability),
        )


class ScoreBody(ModelFields):
    """A text whose log-probability is wanted."""

    prompt: Prompt

    def request(self, use_braiding: UseBraiding, shard: str | None) -> ScoreRequest:
        """What the engine is asked."""
        return ScoreRequest(
            prompt=self.prompt if isinstance(self.prompt, str) else tuple(self.prompt),
            use_braiding=use_braiding,
            shard=shard,
            timeout_s=self.timeout_s,
        )


class AlternativeOut(BaseModel):
    """A token that was considered."""

    id: int
    text: str
    logprob: float | None


class TokenOut(BaseModel):
    """One token. ``text`` is what became certain with it; ``weights`` each shard's in its probability; ``stability``
    only on demand."""

    id: int
    text: str
    logprob: float | None = None
    alternatives: list[AlternativeOut] | None = None
    weights: dict[str, float]
    stability: TokenStabilityOut | None = None


class ChoiceOut(BaseModel):
    """One finished text. ``stability`` only on demand."""

    index: int
    text: str
    finish_reason: str
    stop_reason: str | int | None
    tokens: list[TokenOut]
    weights: Annotated[dict[str, float], Field(description="of each shard, mean over the tokens")]
    stability: ChoiceStabilityOut | None = None


class UsageOut(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PartTimesOut(BaseModel):
    """Seconds that went into ``count`` spans of a shard, or exchanges at a fusion point."""

    count: int
    compute_s: float
    wire_s: float
    wait_s: float
    serialize_s: float


class StepTimesOut(BaseModel):
    """Seconds of the ``count`` steps that the request took part in; shards work at the same time."""

    count: int
    wall_s: float
    readout_s: float
    shards: dict[str, PartTimesOut]
    points: dict[str, PartTimesOut]


class TimingsOut(BaseModel):
    """In seconds since the request came in; ``queue_s`` is how long it waited. The last two only on demand."""

    queue_s: float
    time_to_first_token_s: float
    total_s: float
    time_per_output_token_s: float | None = None
    steps: StepTimesOut | None = None

    @classmethod
    def of(cls, timings: RequestTimings) -> TimingsOut:
        """Without what was not asked for."""
        told = asdict(timings)
        if timings.steps is None:
            del told["time_per_output_token_s"], told["steps"]
        return cls.model_validate(told)


class GenerateOut(ChoiceOut):
    """The first choice, and all of them under ``choices`` where there are several."""

    request_id: str
    model: str
    braided: bool
    answered_by: Annotated[str, Field(description="the braid, or the shard that answered alone")]
    weights_version: str
    usage: UsageOut
    timings: TimingsOut
    choices: list[ChoiceOut] | None = None


class ScoreOut(BaseModel):
    """Natural log-probabilities of each token given those before; the first has none and counts 0."""

    model: str
    braided: bool
    answered_by: str
    token_ids: list[int]
    tokens: list[str]
    logprobs: list[float | None]
    num_bytes: int
    total_logprob: float | None
    bits_per_byte: float | None


class CancelBody(Strict):
    """Which request is to end."""

    request_id: Annotated[str, Field(min_length=1)]


class VersionBody(Strict):
    """Which version of the fusion weights is meant."""

    version: Annotated[str, Field(min_length=1)]


class ActiveVersionOut(BaseModel):
    """The version that new requests get, and what one that is published has to fit."""

    active: str
    max_publish_bytes: Annotated[int, Field(description="that its weights may have; 0: none is taken in")]
    plan: Annotated[
        dict[str, Any], Field(description="what it must be made for; only the seed may be another")
    ]


class PublishedOut(BaseModel):
    """A version that was taken in, and the one that new requests get."""

    version: str
    active: str
    in_memory_only: Annotated[bool, Field(description="gone when the process that holds it ends")]


class ErrorDetailOut(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: int
    retry_after_s: float | None = None


class ErrorOut(BaseModel):
    """The shape of every error."""

    error: ErrorDetailOut


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": text}
    for status, text in (
        (400, "a value that is not allowed"),
        (401, "no API key, or one that is not known"),
        (404, "no such model, shard or version"),
        (408, "a body that stopped coming"),
        (409, "valid in itself, but not now"),
        (413, "a body that is too large"),
        (429, "no room now: Retry-After says when"),
        (503, "a part of the braid does not answer"),
        (504, "not done in the time allowed"),
    )
}
# What a route that streams on demand answers with beside its JSON.
STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "an answer, or events if they are asked for"}
}
