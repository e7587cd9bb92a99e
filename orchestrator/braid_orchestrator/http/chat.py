"""`/v1/chat/completions`: conversations, by the anchor's own chat template (or that of the shard that is asked)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from braid_orchestrator.engine.requests import ChoiceFinished, Event, Finished, GenerateRequest, TokenEvent
from braid_orchestrator.http.chat_schemas import (
    ChatBody,
    ChatChoiceOut,
    ChatChunkOut,
    ChatDeltaOut,
    ChatLogprobsOut,
    ChatOut,
    DeltaOut,
    TokenLogprobOut,
    TopLogprobOut,
)
from braid_orchestrator.http.collecting import finite
from braid_orchestrator.http.errors import error_body, internal_error
from braid_orchestrator.http.native_schemas import ERROR_RESPONSES, STREAM_RESPONSES, TimingsOut
from braid_orchestrator.http.openai_schemas import CompletionUsageOut, check_stream_options, reasons_of
from braid_orchestrator.http.stability_schemas import stability_options
from braid_orchestrator.http.streaming import DONE, EventStream, first_of, sse, unless_hung_up
from braid_orchestrator.serving.calls import current_call
from braid_orchestrator.serving.model_selection import answered_by, select_model
from braid_orchestrator.serving.port import BraidPort, as_generator
from braid_orchestrator.serving.shard_text import ShardText
from braid_rpc.errors import BraidError, InvalidRequestError


def chat_routes(get_service: Callable[[], BraidPort]) -> APIRouter:
    """The route over whichever service there is at the time of a request."""
    router = APIRouter(tags=["completions"], responses=ERROR_RESPONSES)

    @router.post("/v1/chat/completions", response_model=ChatOut, responses=STREAM_RESPONSES)
    async def chat_completions(body: ChatBody, http: Request) -> Response | ChatOut:
        """Go on with a conversation; ``model`` is the braid or one of its shards."""
        call = await unless_hung_up(http, _prepare(get_service(), body))
        if not body.stream:
            return await unless_hung_up(http, call.answer())
        first = await first_of(http, call.events)
        return EventStream(call.stream(first), [call.events])

    return router


async def _prepare(service: BraidPort, body: ChatBody) -> _Call:
    """Render and tokenize off the loop: a long conversation takes long."""
    check_stream_options(body.stream, body.stream_options)
    if body.add_generation_prompt and body.continue_final_message:
        raise InvalidRequestError(
            "continue_final_message: got true together with add_generation_prompt, "
            "expected add_generation_prompt false"
        )
    description = service.describe()
    shards = [shard.name for shard in description.shards]
    use_braiding, shard = select_model(body.model, body.use_braiding, None, braid=service.name, shards=shards)
    # Whoever answers has a template of its own, so that is decided by what was said, not by how it is written out.
    asked = GenerateRequest(_said(body), body.options(1), use_braiding=use_braiding, shard=shard)
    decided = await service.decide(asked)
    shard = decided.shard
    text = service.text(shard)
    prompt = await asyncio.to_thread(_prompt, text, body)
    context = description.context_length if decided.use_braiding else text.context_length
    request = GenerateRequest(
        prompt,
        body.options(context - len(prompt)),
        current_call().name_request(prefix="chatcmpl-"),
        body.n,
        decided.use_braiding,
        shard,
        timings=body.timings,
        stability=stability_options(body.stability),
    )
    request.validate()
    who = answered_by(request, braid=service.name, anchor=description.anchor)
    return _Call(service, body, text, request, who)


def _said(body: ChatBody) -> str:
    contents = (message.for_template().get("content") for message in body.messages)
    return "\n".join(content for content in contents if isinstance(content, str))


def _prompt(text: ShardText, body: ChatBody) -> tuple[int, ...]:
    rendered = text.render(
        [message.for_template() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=body.chat_template_kwargs,
    )
    return text.encode(rendered, add_special_tokens=body.add_special_tokens).token_ids


class _Call:
    """One call, and its events as messages or as pieces of them."""

    def __init__(
        self, service: BraidPort, body: ChatBody, text: ShardText, request: GenerateRequest, model: str
    ) -> None:
        self._body = body
        self._text = text
        self._id = request.request_id
        self._created = int(time.time())
        self._model = model
        self._told: dict[str, Any] = {}
        if body.use_braiding is not None:
            self._told = {"braided": model == service.name, "answered_by": model}
        self._usage: CompletionUsageOut | None = None
        self._timings: TimingsOut | None = None
        self.events = as_generator(service.generate(request))

    async def answer(self) -> ChatOut:
        """All at once."""
        choices = [ChatChoiceOut(index=index) for index in range(self._body.n)]
        async with aclosing(self.events):
            async for event in self.events:
                for piece in self._pieces(event):
                    _append(choices[piece.index], piece)
        return ChatOut(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=self._usage,
            timings=self._timings,
            **self._told,
        )

    async def stream(self, first: Event) -> AsyncGenerator[bytes, None]:
        """Server-sent events: each choice's role first, its finish reason last."""
        try:
            for index in range(self._body.n):
                yield self._chunk([ChatDeltaOut(index=index, delta=DeltaOut(role="assistant", content=""))])
            for piece in self._pieces(first):
                yield self._chunk([piece])
            async with aclosing(self.events):
                async for event in self.events:
                    for piece in self._pieces(event):
                        yield self._chunk([piece])
            usage = self._body.stream_options and self._body.stream_options.include_usage
            if usage or self._body.timings or self._told:
                yield self._chunk([], self._usage if usage else None, self._timings, self._told)
        except BraidError as error:
            yield sse(error_body(error))
        except Exception as error:  # noqa: BLE001  the status is already sent; the client must still be told
            yield sse(error_body(internal_error(error)))
        yield DONE

    def _pieces(self, event: Event) -> list[ChatDeltaOut]:
        match event:
            case TokenEvent():
                logprobs = self._logprobs(event)
                if event.text or logprobs is not None:
                    delta = DeltaOut(content=event.text)
                    return [ChatDeltaOut(index=event.index, delta=delta, logprobs=logprobs)]
            case ChoiceFinished():
                reason, stop_reason = reasons_of(event)
                end = ChatDeltaOut(
                    index=event.index,
                    delta=DeltaOut(content=event.text) if event.text else DeltaOut(),
                    finish_reason=reason,
                    stop_reason=stop_reason,
                )
                return [end]
            case Finished():
                self._usage = CompletionUsageOut.of(event.prompt_tokens, event.completion_tokens)
                self._timings = TimingsOut.of(event.timings) if self._body.timings else None
        return []

    def _logprobs(self, event: TokenEvent) -> ChatLogprobsOut | None:
        if event.logprob is None:
            return None
        alternatives = [
            TopLogprobOut(
                token=top.token, logprob=finite(top.logprob), bytes=self._text.token_bytes(top.token_id)
            )
            for top in event.top_logprobs
        ]
        token = TokenLogprobOut(
            token=self._text.names([event.token_id])[0],
            logprob=finite(event.logprob),
            bytes=self._text.token_bytes(event.token_id),
            top_logprobs=alternatives,
        )
        return ChatLogprobsOut(content=[token])

    def _chunk(
        self,
        choices: list[ChatDeltaOut],
        usage: CompletionUsageOut | None = None,
        timings: TimingsOut | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> bytes:
        chunk = ChatChunkOut(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            timings=timings,
            **(told or {}),
        )
        data = chunk.model_dump()
        for choice, sent in zip(choices, data["choices"], strict=True):
            sent["delta"] = choice.delta.model_dump(exclude_unset=True)
        return sse(data)


def _append(choice: ChatChoiceOut, piece: ChatDeltaOut) -> None:
    choice.message.content += piece.delta.content or ""
    if piece.finish_reason:
        choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
    if piece.logprobs is not None:
        choice.logprobs = choice.logprobs or ChatLogprobsOut()
        choice.logprobs.content.extend(piece.logprobs.content)
