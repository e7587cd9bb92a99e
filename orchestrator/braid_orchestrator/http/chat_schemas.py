"""The shapes of `/v1/chat/completions`, as clients of chat services expect them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from braid_orchestrator.engine.requests import SamplingOptions
from braid_orchestrator.http.native_schemas import SamplingFields, Strict, TimingsOut, UseBraidingField
from braid_orchestrator.http.openai_schemas import CompletionUsageOut, NullIsDefault, StreamOptions, Timed
from braid_orchestrator.http.stability_schemas import StabilityAsked
from braid_rpc.errors import InvalidRequestError


class TextPart(Strict):
    """A piece of a message's text. Images, sound and files are refused."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message. Which roles there are, and whether tools may speak, is the chat template's to say. What an
    answer brings along as null may come back as null."""

    role: Annotated[str, Field(min_length=1)]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    def for_template(self) -> dict[str, Any]:
        """What the template sees: what was given, parts of text as one text."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        if isinstance(self.content, list):
            given["content"] = "\n".join(part.text for part in self.content)
        return given


class ChatBody(NullIsDefault, SamplingFields):
    """A conversation to go on with. What has no effect on the answer is accepted and ignored."""

    model: Annotated[str | None, Field(description="the braid, or one of its shards alone")] = None
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = None  # type: ignore[assignment]  # null: what the context has room for
    max_completion_tokens: Annotated[int | None, Field(description="the newer name of max_tokens")] = None
    logprobs: bool = False
    top_logprobs: Annotated[int | None, Field(description="alternatives per token, with logprobs")] = None
    n: int = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    add_generation_prompt: Annotated[bool, Field(description="begin the answer's turn")] = True
    continue_final_message: Annotated[bool, Field(description="go on with the last message itself")] = False
    add_special_tokens: Annotated[bool, Field(description="beside those that the template writes")] = False
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Field(description="what else the template may name")
    ] = None
    chat_template: None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    tools: Annotated[list[dict[str, Any]] | None, Field(max_length=0)] = None
    tool_choice: Literal["none"] | None = None
    timings: Annotated[bool, Field(description="tell where the time of its steps went")] = False
    use_braiding: UseBraidingField = None
    stability: StabilityAsked = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    def limit(self) -> int | None:
        """The most tokens to make, by either name. Raises: InvalidRequestError if the two differ."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise InvalidRequestError(
                f"max_completion_tokens: got {new} beside max_tokens {old}, expected one of them"
            )
        return new if old is None else old

    def options(self, room: int) -> SamplingOptions:
        """The same as frozen values; ``room`` is how many tokens fit behind the prompt.

        Raises: InvalidRequestError for options that contradict each other.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                f"top_logprobs: got {self.top_logprobs} without logprobs, expected logprobs true"
            )
        limit = self.limit()
        return self.sampling(
            max_tokens=max(room, 1) if limit is None else limit,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class TopLogprobOut(BaseModel):
    """An alternative. ``bytes`` are those of its text, also where they are but a part of a character."""

    token: str
    logprob: float | None
    bytes: list[int] | None


class TokenLogprobOut(TopLogprobOut):
    """A token of the answer, and what else was likely in its place."""

    top_logprobs: list[TopLogprobOut]


class ChatLogprobsOut(BaseModel):
    """One entry per token."""

    content: list[TokenLogprobOut] = Field(default_factory=list)
    refusal: None = None


class AnswerOut(BaseModel):
    """The message that was written."""

    role: str = "assistant"
    content: str = ""
    refusal: None = None


class ChatChoiceOut(BaseModel):
    """One answer."""

    index: int
    message: AnswerOut = Field(default_factory=AnswerOut)
    logprobs: ChatLogprobsOut | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class DeltaOut(BaseModel):
    """What a chunk adds."""

    role: str | None = None
    content: str | None = None


class ChatDeltaOut(BaseModel):
    """A piece of one answer."""

    index: int
    delta: DeltaOut
    logprobs: ChatLogprobsOut | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class ChatOut(Timed):
    """All answers."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoiceOut]
    usage: CompletionUsageOut | None = None
    timings: TimingsOut | None = None
    braided: bool | None = None
    answered_by: str | None = None


class ChatChunkOut(Timed):
    """A chunk of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatDeltaOut]
    usage: CompletionUsageOut | None = None
    timings: TimingsOut | None = None
    braided: bool | None = None
    answered_by: str | None = None
