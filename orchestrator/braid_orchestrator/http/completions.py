"""`/v1/completions` as other completion services have it: any of their clients can talk to a braid."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Finished,
    GenerateRequest,
    Started,
    TokenEvent,
)
from braid_orchestrator.http.collecting import finite
from braid_orchestrator.http.echoing import echo_of, top_logprobs_of
from braid_orchestrator.http.errors import error_body, internal_error
from braid_orchestrator.http.merging import merge
from braid_orchestrator.http.native_schemas import ERROR_RESPONSES, STREAM_RESPONSES, TimingsOut
from braid_orchestrator.http.openai_schemas import (
    CompletionBody,
    CompletionChoiceOut,
    CompletionOut,
    CompletionUsageOut,
    LogprobsOut,
    check_stream_options,
    reasons_of,
)
from braid_orchestrator.http.stability_schemas import stability_options
from braid_orchestrator.http.streaming import DONE, EventStream, first_of, sse, unless_hung_up
from braid_orchestrator.serving.calls import current_call
from braid_orchestrator.serving.model_selection import answered_by, select_model
from braid_orchestrator.serving.port import BraidPort, as_generator
from braid_orchestrator.serving.shard_text import ShardText
from braid_rpc.errors import BraidError, InvalidRequestError

_MAX_PROMPTS = 64


def completion_routes(get_service: Callable[[], BraidPort]) -> APIRouter:
    """The route over whichever service there is at the time of a request."""
    router = APIRouter(tags=["completions"], responses=ERROR_RESPONSES)

    @router.post("/v1/completions", response_model=CompletionOut, responses=STREAM_RESPONSES)
    async def completions(body: CompletionBody, http: Request) -> Response | CompletionOut:
        """Go on with one or several prompts; ``model`` is the braid or one of its shards."""
        call = _Call(get_service(), body)
        if not body.stream:
            return await unless_hung_up(http, call.answer())
        first = await first_of(http, call.pieces)
        return EventStream(call.stream(first), [call.pieces])

    return router


class _Call:
    """One call: ``n`` choices for each of its prompts; choice i of prompt p has index p · n + i.

    The answer comes in pieces, in the same way whether they are sent one by one or put together. None is the
    piece that says only that a prompt was admitted.
    """

    def __init__(self, service: BraidPort, body: CompletionBody) -> None:
        shards = [shard.name for shard in service.describe().shards]
        use_braiding, shard = select_model(
            body.model, body.use_braiding, None, braid=service.name, shards=shards
        )
        check_stream_options(body.stream, body.stream_options)
        if body.best_of is not None and body.best_of != body.n:
            raise InvalidRequestError(
                f"best_of: got {body.best_of}, expected the same as n ({body.n}) or nothing"
            )
        prompts = body.prompts()
        if not 1 <= len(prompts) <= _MAX_PROMPTS:
            raise InvalidRequestError(
                f"prompt: got {len(prompts)} prompts, expected between 1 and {_MAX_PROMPTS}"
            )
        # Nothing to make, only a prompt to look at: evaluation tools ask like this.
        self._only_echo = body.echo and body.max_tokens == 0
        sampling = body.sampling()
        if self._only_echo:
            sampling = replace(sampling, max_tokens=1, min_tokens=0)
        self._service = service
        self._body = body
        self._id = current_call().name_request(prefix="cmpl-")
        self._created = int(time.time())
        self._model = shard or service.name
        self._anchor = service.describe().anchor
        self._answered_by: dict[int, str] = {}
        self._requests = [
            GenerateRequest(
                prompt,
                sampling,
                self._request_id(i, len(prompts)),
                body.n,
                use_braiding,
                shard,
                None,
                body.timings,
                stability_options(body.stability),
            )
            for i, prompt in enumerate(prompts)
        ]
        for request in self._requests:
            request.validate()
        self._offsets = [0] * (body.n * len(prompts))
        self._prompt_tokens = self._completion_tokens = 0
        self._timings: dict[int, TimingsOut] = {}
        self.pieces = merge([self._pieces(i) for i in range(len(prompts))])

    async def answer(self) -> CompletionOut:
        """All at once."""
        choices = [CompletionChoiceOut(index=i, text="") for i in range(len(self._offsets))]
        async with aclosing(self.pieces):
            async for piece in self.pieces:
                if piece is not None:
                    _append(choices[piece.index], piece)
        return self._chunk(choices, self._usage(), self._told_timings(), is_last=True)

    async def stream(self, first: CompletionChoiceOut | None) -> AsyncGenerator[bytes, None]:
        """Server-sent events, one per piece."""
        try:
            if first is not None:
                yield sse(self._chunk([first]).model_dump(exclude_none=False))
            async with aclosing(self.pieces):
                async for piece in self.pieces:
                    if piece is not None and (piece.text or piece.finish_reason or piece.logprobs):
                        yield sse(self._chunk([piece]).model_dump())
            usage = self._body.stream_options and self._body.stream_options.include_usage
            if usage or self._body.timings or self._body.use_braiding is not None:
                end = self._chunk([], self._usage() if usage else None, self._told_timings(), is_last=True)
                yield sse(end.model_dump(exclude_none=False))
        except BraidError as error:
            yield sse(error_body(error))
        except Exception as error:  # noqa: BLE001  the status is already sent; the client must still be told
            yield sse(error_body(internal_error(error)))
        yield DONE

    async def _pieces(self, position: int) -> AsyncGenerator[CompletionChoiceOut | None, None]:
        request, base = await self._decided(position), position * self._body.n
        text = self._service.text(request.shard)
        if self._body.echo:
            echo = await echo_of(self._service, request, self._body.logprobs)
            if self._only_echo:
                self._prompt_tokens += echo.num_tokens
            for index in range(base, base + self._body.n):
                self._offsets[index] = len(echo.text)
                reason = "length" if self._only_echo else None
                yield CompletionChoiceOut(
                    index=index, text=echo.text, logprobs=echo.logprobs, finish_reason=reason
                )
        if self._only_echo:
            return
        async with aclosing(as_generator(self._service.generate(request))) as events:
            async for event in events:
                match event:
                    case Started():
                        yield None
                    case TokenEvent():
                        index = base + event.index
                        yield CompletionChoiceOut(
                            index=index, text=event.text, logprobs=self._token_logprobs(event, index, text)
                        )
                    case ChoiceFinished():
                        reason, stop_reason = reasons_of(event)
                        yield CompletionChoiceOut(
                            index=base + event.index,
                            text=event.text,
                            finish_reason=reason,
                            stop_reason=stop_reason,
                        )
                    case Finished():
                        self._prompt_tokens += event.prompt_tokens
                        self._completion_tokens += event.completion_tokens
                        if self._body.timings:
                            self._timings[position] = TimingsOut.of(event.timings)

    def _request_id(self, position: int, num_prompts: int) -> str:
        return self._id if num_prompts == 1 else f"{self._id}-{position}"

    async def _decided(self, position: int) -> GenerateRequest:
        request = await self._service.decide(self._requests[position])
        who = answered_by(request, braid=self._service.name, anchor=self._anchor)
        self._answered_by[position] = who
        if len(self._requests) == 1:
            self._model = who
        return request

    def _token_logprobs(self, token: TokenEvent, index: int, text: ShardText) -> LogprobsOut | None:
        offset = self._offsets[index]
        self._offsets[index] += len(token.text)
        if token.logprob is None:
            return None
        logprob = finite(token.logprob)
        name = text.names([token.token_id])[0] if token.top_logprobs else ""
        return LogprobsOut(
            tokens=[token.text],
            token_logprobs=[logprob],
            top_logprobs=[top_logprobs_of(token.top_logprobs, name, logprob)],
            text_offset=[offset],
        )

    def _usage(self) -> CompletionUsageOut:
        return CompletionUsageOut.of(self._prompt_tokens, self._completion_tokens)

    def _told_timings(self) -> list[TimingsOut] | None:
        return [timings for _, timings in sorted(self._timings.items())] if self._body.timings else None

    def _chunk(
        self,
        choices: list[CompletionChoiceOut],
        usage: CompletionUsageOut | None = None,
        timings: list[TimingsOut] | None = None,
        *,
        is_last: bool = False,
    ) -> CompletionOut:
        told = is_last and self._body.use_braiding is not None
        return CompletionOut(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            timings=timings,
            **(self._told_answerers() if told else {}),
        )

    def _told_answerers(self) -> dict[str, Any]:
        names = [name for _, name in sorted(self._answered_by.items())]
        return {"braided": [name == self._service.name for name in names], "answered_by": names}


def _append(choice: CompletionChoiceOut, piece: CompletionChoiceOut) -> None:
    choice.text += piece.text
    if piece.finish_reason:
        choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
    if piece.logprobs is not None:
        whole = choice.logprobs = choice.logprobs or LogprobsOut()
        for name in LogprobsOut.model_fields:
            getattr(whole, name).extend(getattr(piece.logprobs, name))
