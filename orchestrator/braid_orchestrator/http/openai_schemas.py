"""The shapes of `/v1/completions` and `/v1/models`, as clients of completion services expect them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from braid_orchestrator.engine.requests import ChoiceFinished
from braid_orchestrator.http.native_schemas import SamplingFields, Strict, TimingsOut, UseBraidingField
from braid_orchestrator.http.stability_schemas import StabilityAsked
from braid_rpc.errors import InvalidRequestError

Prompts = str | list[str] | list[int] | list[list[int]]


class StreamOptions(Strict):
    """``include_usage``: a last chunk counts the tokens."""

    include_usage: bool = False


def check_stream_options(stream: bool, options: StreamOptions | None) -> None:
    """Raises: InvalidRequestError for options of a stream that is none."""
    if options is not None and not stream:
        raise InvalidRequestError("stream_options: got a value without stream, expected stream true or null")


def reasons_of(finished: ChoiceFinished) -> tuple[str, str | int | None]:
    """Why a choice ended, and what ended it, in the words of these APIs: their clients know no other reason than
    "stop" for a text that ended before its length."""
    if finished.finish_reason == "instability":
        return "stop", "instability"
    return finished.finish_reason, finished.stop_reason


class NullIsDefault(Strict):
    """Clients send null for whatever they leave at its default."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class Timed(BaseModel):
    """An answer, or the end of a stream, that tells where the time went and who answered if that was asked for. Else
    it says nothing of it: other services' clients need not know."""

    @model_serializer(mode="wrap")
    def _without_what_was_not_asked_for(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = serialize(self)
        for name in ("timings", "braided", "answered_by"):
            if data.get(name, 0) is None:
                del data[name]
        return data


class CompletionBody(NullIsDefault, SamplingFields):
    """One or several prompts to go on with. What has no effect on the answer is accepted and ignored."""

    model: Annotated[str | None, Field(description="the braid, or one of its shards alone")] = None
    prompt: Prompts
    max_tokens: int = 16
    n: int = 1
    best_of: int | None = None
    echo: Annotated[bool, Field(description="the prompt stands before the completion")] = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    timings: Annotated[bool, Field(description="tell where the time of its steps went")] = False
    use_braiding: UseBraidingField = None
    stability: StabilityAsked = None
    suffix: None = None
    user: str | None = None

    def prompts(self) -> list[str | tuple[int, ...]]:
        """One entry per prompt: text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [tuple(part for part in self.prompt if isinstance(part, int))]
        return [
            tuple(part) if isinstance(part, list) else part
            for part in self.prompt
            if not isinstance(part, int)
        ]


class LogprobsOut(BaseModel):
    """Parallel lists, one entry per token; ``text_offset`` counts characters of the answer."""

    tokens: list[str] = Field(default_factory=list)
    token_logprobs: list[float | None] = Field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = Field(default_factory=list)
    text_offset: list[int] = Field(default_factory=list)


class CompletionChoiceOut(BaseModel):
    """One choice, or a piece of one in a stream."""

    index: int
    text: str
    logprobs: LogprobsOut | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class CompletionUsageOut(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> CompletionUsageOut:
        """With their sum."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class CompletionOut(Timed):
    """An answer, or a chunk of one. ``timings``, ``braided`` and ``answered_by``: one per prompt, in their order."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoiceOut]
    usage: CompletionUsageOut | None = None
    timings: list[TimingsOut] | None = None
    braided: list[bool] | None = None
    answered_by: list[str] | None = None


class ModelOut(BaseModel):
    """Something that can be asked for as ``model``."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "braid"
    max_model_len: int
    root: Annotated[str, Field(description="what it is made of")]


class ModelListOut(BaseModel):
    """All of them."""

    object: str = "list"
    data: list[ModelOut]
