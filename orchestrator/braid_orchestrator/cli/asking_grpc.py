"""The command line asks a braid by gRPC."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

from braid_orchestrator.cli.asking import Braid
from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    GenerateRequest,
    RequestTimings,
    Started,
    TokenEvent,
    TopLogprob,
)
from braid_orchestrator.serving.probing import OWN_KEY_VARIABLE
from braid_rpc import BraidClient, completions
from braid_rpc.completions import GenerateOptions


class GrpcBraid(Braid):
    """At ``host:port`` or ``unix:/path``."""

    def __init__(self, target: str) -> None:
        self._client = BraidClient(target, api_key=os.environ.get(OWN_KEY_VARIABLE, ""))

    def stream(self, request: GenerateRequest, model: str | None) -> Iterator[Event]:
        """See `Braid`."""
        options = asdict(request.sampling) | {"n": request.n, "model": model, "timeout_s": request.timeout_s}
        options |= {"use_braiding": request.use_braiding, "shard": request.shard}
        if request.stability is not None:
            options["stability"] = request.stability
        with self._client.stream(request.prompt, **cast(GenerateOptions, options)) as events:
            for event in events:
                if isinstance(event, completions.Started):
                    self.model, self.braided = event.model, event.braided
                yield _translate(event)

    def describe(self) -> dict[str, Any]:
        """See `Braid`."""
        return asdict(self._client.describe())

    def close(self) -> None:
        """See `Braid`."""
        self._client.close()


def _translate(event: completions.Event) -> Event:
    match event:
        case completions.Started():
            return Started(event.request_id, event.prompt_tokens, event.weights_version)
        case completions.Token():
            alternatives = tuple(
                TopLogprob(one.token_id, one.token, one.logprob) for one in event.top_logprobs
            )
            return TokenEvent(
                event.index,
                event.token_id,
                event.text,
                event.logprob,
                alternatives,
                event.weights,
                event.stability,
            )
        case completions.ChoiceFinished():
            reason = cast(FinishReason, event.finish_reason)
            return ChoiceFinished(event.index, reason, event.stop_reason or None, event.text, event.stability)
        case completions.Finished():
            timings = event.timings
            return Finished(
                event.prompt_tokens,
                event.completion_tokens,
                RequestTimings(timings.queue_s, timings.time_to_first_token_s, timings.total_s),
            )
