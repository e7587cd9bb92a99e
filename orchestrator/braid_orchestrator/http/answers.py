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
from braid_orchestrator.http.stability_schemas import ChoiceStabilityOut, TokenStabilityOut
from braid_rpc.stability import ChoiceStability


def answer(collected: Collected, model: str, *, braided: bool) -> GenerateOut:
    """The whole answer. ``model`` is who gave it: the braid, or else one shard."""
    choices = [_choice_out(index, choice) for index, choice in enumerate(collected.choices)]
    finished = collected.finished
    more: dict[str, Any] = {"choices": choices} if len(choices) > 1 else {}
    return GenerateOut(
        **{name: getattr(choices[0], name) for name in choices[0].model_fields_set},
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
        **({} if choice.stability is None else {"stability": _choice_stability(choice.stability)}),
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
    if token.stability is not None:
        told = {name: finite(value) for name, value in asdict(token.stability).items()}
        asked["stability"] = TokenStabilityOut.model_validate(told)
    return TokenOut(id=token.token_id, text=token.text, weights=dict(token.weights), **asked)


def _choice_stability(stability: ChoiceStability) -> ChoiceStabilityOut:
    return ChoiceStabilityOut.model_validate(asdict(stability))


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
            told = asdict(event)
            if event.stability is None:
                del told["stability"]
            return "choice_finished", told
        case Finished():
            timings = TimingsOut.of(event.timings).model_dump(exclude_unset=True)
            return "finished", {"usage": _usage(event).model_dump(), "timings": timings}
