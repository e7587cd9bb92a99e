"""How questions to a braid become messages, and its answers values again.

Checking values is the server's affair, except for what a message cannot hold at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from braid_rpc.completions import (
    BraidCard,
    BraidPoint,
    BraidShard,
    ChoiceFinished,
    Event,
    Finished,
    GenerateOptions,
    Prompt,
    Score,
    Started,
    Timings,
    Token,
    TopLogprob,
    UseBraiding,
)
from braid_rpc.errors import InvalidRequestError
from braid_rpc.stability import ChoiceStability, StabilityOptions, TokenStability
from braid_rpc.step_times import PartTimes, StepTimes
from braid_rpc.v1 import braid_pb2

ValuesT = TypeVar("ValuesT")

_REQUEST_FIELDS = frozenset({"n", "use_braiding", "shard", "model", "timeout_s", "timings"})
_SAMPLING_FIELDS = frozenset(GenerateOptions.__annotations__) - _REQUEST_FIELDS - {"request_id", "stability"}


def generate_message(prompt: Prompt, options: Mapping[str, Any]) -> braid_pb2.GenerateRequest:
    """The request for a prompt and `GenerateOptions`.

    Raises: InvalidRequestError, naming an option that is unknown or of a wrong type.
    """
    message = braid_pb2.GenerateRequest()
    _set_prompt(message, prompt)
    for name, value in options.items():
        if value is None:
            continue
        if name in _REQUEST_FIELDS or name == "request_id":
            _set(message, name, value)
        elif name == "stability":
            _set_stability(message.stability, value)
        elif name in _SAMPLING_FIELDS:
            _set(message.sampling, name, value)
        else:
            known = sorted(GenerateOptions.__annotations__)
            raise InvalidRequestError(f"{name}: got an unknown option, expected one of {known}")
    return message


def score_message(
    prompt: Prompt, *, use_braiding: UseBraiding | None, shard: str, timeout_s: float | None
) -> braid_pb2.ScoreRequest:
    """The request to score a text or token ids. Raises: InvalidRequestError."""
    message = braid_pb2.ScoreRequest(shard=shard, timeout_s=timeout_s or 0.0)
    if use_braiding is not None:
        _set(message, "use_braiding", use_braiding)
    _set_prompt(message, prompt)
    return message


def event_from_proto(message: braid_pb2.GenerateEvent) -> Event | None:
    """The event that ``message`` carries; None for one without content, which some proxies send before an error."""
    match message.WhichOneof("event"):
        case "token":
            token = message.token
            return Token(
                token.index,
                token.token_id,
                token.text,
                token.logprob if token.HasField("logprob") else None,
                tuple(TopLogprob(top.token_id, top.token, top.logprob) for top in token.top_logprobs),
                dict(token.weights),
                _values(TokenStability, token.stability) if token.HasField("stability") else None,
            )
        case "started":
            started = message.started
            return Started(
                started.request_id,
                started.model,
                started.prompt_tokens,
                started.weights_version,
                started.braided,
                started.answered_by,
            )
        case "choice_finished":
            choice = message.choice_finished
            return ChoiceFinished(
                choice.index,
                choice.finish_reason,
                choice.stop_reason,
                choice.text,
                _values(ChoiceStability, choice.stability) if choice.HasField("stability") else None,
            )
        case "finished":
            finished = message.finished
            timings = finished.timings
            return Finished(
                finished.prompt_tokens,
                finished.completion_tokens,
                Timings(
                    timings.queue_s,
                    timings.time_to_first_token_s,
                    timings.total_s,
                    timings.time_per_output_token_s if timings.HasField("time_per_output_token_s") else None,
                    _steps(timings.steps) if timings.HasField("steps") else None,
                ),
            )
    return None


def _values(kind: type[ValuesT], message: Any) -> ValuesT:
    """A record of the message's fields of the same names, None where an optional one was left out."""
    optional = {field.name for field in message.DESCRIPTOR.fields if field.has_presence}
    return kind(
        **{
            field.name: None
            if field.name in optional and not message.HasField(field.name)
            else getattr(message, field.name)
            for field in message.DESCRIPTOR.fields
        }
    )


def _set_stability(message: braid_pb2.StabilityOptions, options: object) -> None:
    if not isinstance(options, StabilityOptions):
        raise InvalidRequestError(f"stability: got {_short(options)}, expected StabilityOptions")
    for field in fields(options):
        value = getattr(options, field.name)
        try:
            setattr(message, field.name, value)
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"stability.{field.name}: got {_short(value)}: {error}") from None
    message.SetInParent()


def _steps(message: braid_pb2.StepTimes) -> StepTimes:
    return StepTimes(
        message.count,
        message.wall_s,
        message.readout_s,
        {name: _part(part) for name, part in message.shards.items()},
        {name: _part(part) for name, part in message.points.items()},
    )


def _part(message: braid_pb2.PartTimes) -> PartTimes:
    return PartTimes(*(getattr(message, name) for name in PartTimes.__slots__))


def score_from_proto(reply: braid_pb2.ScoreReply) -> Score:
    """The score that ``reply`` carries."""
    return Score(
        tuple(reply.token_ids),
        tuple(reply.tokens),
        tuple(reply.logprobs),
        reply.num_bytes,
        reply.braided,
        reply.answered_by,
    )


def card_from_proto(message: braid_pb2.BraidCard) -> BraidCard:
    """The card that ``message`` carries."""
    return BraidCard(
        message.protocol_version,
        message.name,
        message.anchor,
        tuple(
            BraidShard(*(getattr(shard, name) for name in BraidShard.__slots__)) for shard in message.shards
        ),
        tuple(BraidPoint(p.name, p.strategy, p.injection, tuple(p.layers)) for p in message.points),
        message.readout,
        message.weights_version,
        message.context_length,
    )


def _set_prompt(message: braid_pb2.GenerateRequest | braid_pb2.ScoreRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        _set(message, "text", prompt, label="prompt")
        return
    try:
        message.tokens.SetInParent()
        message.tokens.ids.extend(prompt)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"prompt: {error}, expected text or token ids") from None


def _set(message: Any, name: str, value: Any, *, label: str = "") -> None:
    try:
        if name == "stop":
            message.stop.extend([value] if isinstance(value, str) else value)
        elif name == "stop_token_ids":
            message.stop_token_ids.extend(value)
        elif name == "logit_bias":
            message.logit_bias.update(value)
        elif name == "use_braiding":
            _set_braiding(message, value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRequestError(f"{label or name}: got {_short(value)}: {error}") from None


def _set_braiding(message: Any, value: object) -> None:
    if isinstance(value, bool):
        message.use_braiding = value
    elif value == "auto":
        message.auto_braiding = True
    else:
        raise InvalidRequestError(f"use_braiding: got {_short(value)}, expected True, False or 'auto'")


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
