"""A request's events and results in the shapes of the native API; the command line prints the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from braid_orchestrator.engine.requests import ChoiceFinished, Event, Finished, Started, TokenEvent
from braid_orchestrator.http.collecting import Collected, CollectedChoice, finite
from braid_orchestrator.http.native_schemas import (
    AlternativeOut,
    ChoiceOut,
    GenerateOut,
    TimingsOut,
    TokenOut,
    UsageOut,
)


def answer(collected: Collected, model: str, *, braided: bool) -> GenerateOut:
    """The whole answer. ``model`` is who gave it: the braid, or else one shard."""
    choices = [_choice_out(index, choice) for index, choice in enumerate(collected.choices)]
    finished = collected.finished
    more: dict[str, Any] = {"choices": choices} if len(choices) > 1 else {}
    return GenerateOut(
        **dict(choices[0]),
        **more,
        request_id=collected.started.request_id,
        model=model,
        braided=braided,
        answered_by=model,
        weights_version=collected.started.weights_version,
        usage=_usage(finished),
        timings=TimingsOut.of(finished.timings),
    )


def _choice_out(index: int, choice: CollectedChoice) -> ChoiceOut:
    return ChoiceOut(
        index=index,
        text=choice.text,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        tokens=[_token_out(token) for token in choice.tokens],
        weights=choice.mean_weights(),
    )


def _token_out(token: TokenEvent) -> TokenOut:
    # What was not asked for is left out, not null: there may be thousands of these.
    asked: dict[str, Any] = {}
    if token.logprob is not None:
        asked["logprob"] = finite(token.logprob)
    if token.top_logprobs:
        asked["alternatives"] = [
            AlternativeOut(id=top.token_id, text=top.token, logprob=finite(top.logprob))
            for top in token.top_logprobs
        ]
    return TokenOut(id=token.token_id, text=token.text, weights=dict(token.weights), **asked)


def _usage(finished: Finished) -> UsageOut:
    return UsageOut(
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        total_tokens=finished.prompt_tokens + finished.completion_tokens,
    )


def event_data(event: Event, model: str, *, braided: bool) -> tuple[str, dict[str, Any]]:
    """The name and the data of one event of a stream. ``model`` is who answers."""
    match event:
        case Started():
            return "started", asdict(event) | {"model": model, "braided": braided, "answered_by": model}
        case TokenEvent():
            return "token", {"index": event.index} | _token_out(event).model_dump(exclude_unset=True)
        case ChoiceFinished():
            return "choice_finished", asdict(event)
        case Finished():
            timings = TimingsOut.of(event.timings).model_dump(exclude_unset=True)
            return "finished", {"usage": _usage(event).model_dump(), "timings": timings}
