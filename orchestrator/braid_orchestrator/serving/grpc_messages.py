"""Requests, events and descriptions as the messages of the `Braid` service. Knows no server and no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    Finished,
    GenerateRequest,
    SamplingOptions,
    ScoreRequest,
    ScoreResult,
    Started,
    TokenEvent,
    UseBraiding,
)
from braid_orchestrator.serving.model_selection import select_model
from braid_rpc.cards import PROTOCOL_VERSION
from braid_rpc.errors import InvalidRequestError
from braid_rpc.stability import StabilityOptions
from braid_rpc.step_times import StepTimes
from braid_rpc.v1 import braid_pb2

if TYPE_CHECKING:
    from braid_orchestrator.serving.service import BraidDescription

_OPTIONAL_SAMPLING = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logprobs",
)
_OPTIONAL_STABILITY = ("threshold", "window", "min_tokens")


def generate_request(
    message: braid_pb2.GenerateRequest, *, braid: str, shards: Sequence[str]
) -> GenerateRequest:
    """What the engine is asked. Raises: InvalidRequestError, UnknownModelError."""
    use_braiding, shard = select_model(
        message.model,
        _use_braiding(message),
        message.shard,
        braid=braid,
        shards=shards,
    )
    request = GenerateRequest(
        prompt=_prompt(message),
        sampling=_sampling(message.sampling),
        request_id=message.request_id,
        n=message.n or 1,
        use_braiding=use_braiding,
        shard=shard,
        timeout_s=_timeout_s(message.timeout_s),
        timings=message.timings,
        stability=_stability(message.stability) if message.HasField("stability") else None,
    )
    request.validate()
    return request


def score_request(message: braid_pb2.ScoreRequest) -> ScoreRequest:
    """What the engine is asked. Raises: InvalidRequestError."""
    request = ScoreRequest(
        prompt=_prompt(message),
        use_braiding=_use_braiding(message),
        shard=message.shard or None,
        timeout_s=_timeout_s(message.timeout_s),
    )
    request.validate()
    return request


def _use_braiding(message: braid_pb2.GenerateRequest | braid_pb2.ScoreRequest) -> UseBraiding:
    said = bool(message.use_braiding) if message.HasField("use_braiding") else None
    if not message.auto_braiding:
        return said
    if said is not None:
        raise InvalidRequestError(f"auto_braiding: got true beside use_braiding {said}, expected one of them")
    return "auto"


def event_message(event: Event, model: str, *, braided: bool) -> braid_pb2.GenerateEvent:
    """One message of a stream. ``model`` is the name of who answers, ``braided`` whether that is the braid."""
    match event:
        case Started():
            return braid_pb2.GenerateEvent(
                started=braid_pb2.Started(
                    request_id=event.request_id,
                    model=model,
                    prompt_tokens=event.prompt_tokens,
                    weights_version=event.weights_version,
                    braided=braided,
                    answered_by=model,
                )
            )
        case TokenEvent():
            return braid_pb2.GenerateEvent(
                token=braid_pb2.Token(
                    index=event.index,
                    token_id=event.token_id,
                    text=event.text,
                    logprob=event.logprob,
                    top_logprobs=[
                        braid_pb2.TopLogprob(token_id=top.token_id, token=top.token, logprob=top.logprob)
                        for top in event.top_logprobs
                    ],
                    weights=event.weights,
                    stability=None
                    if event.stability is None
                    else braid_pb2.TokenStability(**asdict(event.stability)),
                )
            )
        case ChoiceFinished():
            return braid_pb2.GenerateEvent(
                choice_finished=braid_pb2.ChoiceFinished(
                    index=event.index,
                    finish_reason=event.finish_reason,
                    stop_reason="" if event.stop_reason is None else str(event.stop_reason),
                    text=event.text,
                    stability=None
                    if event.stability is None
                    else braid_pb2.ChoiceStability(**asdict(event.stability)),
                )
            )
        case Finished():
            timings = event.timings
            return braid_pb2.GenerateEvent(
                finished=braid_pb2.Finished(
                    prompt_tokens=event.prompt_tokens,
                    completion_tokens=event.completion_tokens,
                    timings=braid_pb2.Timings(
                        queue_s=timings.queue_s,
                        time_to_first_token_s=timings.time_to_first_token_s,
                        total_s=timings.total_s,
                        time_per_output_token_s=timings.time_per_output_token_s,
                        steps=None if timings.steps is None else _steps_message(timings.steps),
                    ),
                )
            )


def _steps_message(steps: StepTimes) -> braid_pb2.StepTimes:
    return braid_pb2.StepTimes(
        count=steps.count,
        wall_s=steps.wall_s,
        readout_s=steps.readout_s,
        shards={name: braid_pb2.PartTimes(**asdict(part)) for name, part in steps.shards.items()},
        points={name: braid_pb2.PartTimes(**asdict(part)) for name, part in steps.points.items()},
    )


def score_message(result: ScoreResult, model: str, *, braided: bool) -> braid_pb2.ScoreReply:
    """The answer to a score request. ``model`` is the name of who gave it."""
    return braid_pb2.ScoreReply(
        token_ids=result.token_ids,
        logprobs=result.logprobs,
        tokens=result.tokens,
        num_bytes=result.num_bytes,
        braided=braided,
        answered_by=model,
    )


def card_message(description: BraidDescription) -> braid_pb2.BraidCard:
    """What the braid is made of."""
    names = ("name", "model_id", "model_hash", "family", "num_layers", "width", "num_parameters", "dtype")
    return braid_pb2.BraidCard(
        protocol_version=PROTOCOL_VERSION,
        name=description.name,
        anchor=description.anchor,
        shards=[
            braid_pb2.BraidShard(
                **{name: getattr(shard, name) for name in names}, tokenizer_hash=shard.tokenizer_hash
            )
            for shard in description.shards
        ],
        points=[
            braid_pb2.BraidPoint(
                name=point.name, strategy=point.strategy, injection=point.injection, layers=point.layers
            )
            for point in description.points
        ],
        readout=description.readout,
        weights_version=description.weights_version,
        context_length=description.context_length,
    )


def _prompt(message: braid_pb2.GenerateRequest | braid_pb2.ScoreRequest) -> str | tuple[int, ...]:
    match message.WhichOneof("prompt"):
        case "text":
            return str(message.text)
        case "tokens":
            return tuple(message.tokens.ids)
    raise InvalidRequestError("prompt: missing, expected text or tokens")


def _sampling(message: braid_pb2.SamplingOptions) -> SamplingOptions:
    given = {name: getattr(message, name) for name in _OPTIONAL_SAMPLING if message.HasField(name)}
    return SamplingOptions(
        **given,
        logit_bias=dict(message.logit_bias),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
    )


def _stability(message: braid_pb2.StabilityOptions) -> StabilityOptions:
    given = {name: getattr(message, name) for name in _OPTIONAL_STABILITY if message.HasField(name)}
    return StabilityOptions(stop=message.stop, auto_temperature=message.auto_temperature, **given)


def _timeout_s(value: float) -> float | None:
    return value if value != 0.0 else None
