"""What a braid answers, as plain values; and how questions and answers become messages and back.

Knows no connection. The names are those of the `Braid` service; checking values is the server's affair, except for
what a message cannot hold at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from braid_rpc.errors import InvalidRequestError, UnavailableError
from braid_rpc.v1 import braid_pb2

Prompt = str | Sequence[int]


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`; what is left out is the server's default.

    ``n`` choices are generated for one prompt. With ``use_braiding`` false one shard answers alone: ``shard``, or
    the anchor. ``logprobs`` is how many alternatives to report per token. ``timeout_s`` holds for everything.
    """

    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int
    n: int
    use_braiding: bool
    shard: str
    model: str
    request_id: str
    timeout_s: float


_REQUEST_FIELDS = frozenset({"n", "use_braiding", "shard", "model", "timeout_s"})
_SAMPLING_FIELDS = frozenset(GenerateOptions.__annotations__) - _REQUEST_FIELDS - {"request_id"}


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted; ``model`` is the braid's name, or the shard's that answers alone."""

    request_id: str
    model: str
    prompt_tokens: int
    weights_version: str


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """An alternative that the model considered."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token of choice ``index``. ``text`` is what became certain with it: perhaps nothing, never half a
    character. ``weights`` says how much each shard had in the token's probability; they sum to one."""

    index: int
    token_id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """Choice ``index`` is complete: ``finish_reason`` is "stop" or "length", ``stop_reason`` the stop string or token
    id that ended it, empty for the end of the text or the length. ``text`` had been held back until now."""

    index: int
    finish_reason: str
    stop_reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Timings:
    """In seconds since the server took the request; ``queue_s`` is how long it waited."""

    queue_s: float
    time_to_first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """All choices are complete; nothing follows."""

    prompt_tokens: int
    completion_tokens: int
    timings: Timings


Event = Started | Token | ChoiceFinished | Finished


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the n completions of a prompt."""

    index: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: str
    stop_reason: str = ""

    @property
    def weights(self) -> dict[str, float]:
        """How much each shard had in the tokens' probabilities, on average."""
        sums: dict[str, float] = {}
        for token in self.tokens:
            for name, weight in token.weights.items():
                sums[name] = sums.get(name, 0.0) + weight
        return {name: total / len(self.tokens) for name, total in sums.items()}


@dataclass(frozen=True, slots=True)
class Completion:
    """The whole answer. ``text``, ``tokens``, ``weights`` and ``finish_reason`` are those of the first choice."""

    request_id: str
    model: str
    weights_version: str
    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int
    timings: Timings

    @property
    def text(self) -> str:
        """The generated text, without the prompt."""
        return self.choices[0].text

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens, each with its shards' weights."""
        return self.choices[0].tokens

    @property
    def weights(self) -> dict[str, float]:
        """How much each shard had in it, on average over the tokens."""
        return self.choices[0].weights

    @property
    def finish_reason(self) -> str:
        """Why it ended: "stop" or "length"."""
        return self.choices[0].finish_reason


@dataclass(frozen=True, slots=True)
class Score:
    """``logprobs[i]`` is the natural log-probability of token i given those before; the first has none: 0."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    num_bytes: int

    @property
    def total_logprob(self) -> float:
        """Natural log-probability of the text, its first token being given."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class BraidShard:
    """A shard of the braid, as far as it concerns a user."""

    name: str
    model_id: str
    model_hash: str
    family: str
    num_layers: int
    width: int
    num_parameters: int
    dtype: str
    tokenizer_hash: str


@dataclass(frozen=True, slots=True)
class BraidPoint:
    """A fusion point; ``layers[s]`` is the layer of shard s before which states are exchanged."""

    name: str
    strategy: str
    injection: str
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BraidCard:
    """What a braid is made of."""

    protocol_version: int
    name: str
    anchor: str
    shards: tuple[BraidShard, ...]
    points: tuple[BraidPoint, ...]
    readout: str
    weights_version: str
    context_length: int


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
        elif name in _SAMPLING_FIELDS:
            _set(message.sampling, name, value)
        else:
            known = sorted(GenerateOptions.__annotations__)
            raise InvalidRequestError(f"{name}: got an unknown option, expected one of {known}")
    return message


def score_message(
    prompt: Prompt, *, use_braiding: bool, shard: str, timeout_s: float | None
) -> braid_pb2.ScoreRequest:
    """The request to score a text or token ids. Raises: InvalidRequestError."""
    message = braid_pb2.ScoreRequest(use_braiding=use_braiding, shard=shard, timeout_s=timeout_s or 0.0)
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
            )
        case "started":
            started = message.started
            return Started(started.request_id, started.model, started.prompt_tokens, started.weights_version)
        case "choice_finished":
            choice = message.choice_finished
            return ChoiceFinished(choice.index, choice.finish_reason, choice.stop_reason, choice.text)
        case "finished":
            finished = message.finished
            timings = finished.timings
            return Finished(
                finished.prompt_tokens,
                finished.completion_tokens,
                Timings(timings.queue_s, timings.time_to_first_token_s, timings.total_s),
            )
    return None


def score_from_proto(reply: braid_pb2.ScoreReply) -> Score:
    """The score that ``reply`` carries."""
    return Score(tuple(reply.token_ids), tuple(reply.tokens), tuple(reply.logprobs), reply.num_bytes)


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


class CompletionBuilder:
    """Puts a `Completion` together from the events of one request."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._tokens: dict[int, list[Token]] = {}
        self._endings: dict[int, ChoiceFinished] = {}

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Token():
                self._tokens.setdefault(event.index, []).append(event)
            case ChoiceFinished():
                self._endings[event.index] = event
            case Started():
                self._started = event
            case Finished():
                self._finished = event

    def build(self) -> Completion:
        """The whole. Raises: UnavailableError if the events broke off before the last."""
        if self._started is None or self._finished is None:
            raise UnavailableError(
                "generate: the server's events ended early, expected 'finished' as the last"
            )
        return Completion(
            self._started.request_id,
            self._started.model,
            self._started.weights_version,
            tuple(self._choice(index) for index in sorted(self._endings)),
            self._finished.prompt_tokens,
            self._finished.completion_tokens,
            self._finished.timings,
        )

    def _choice(self, index: int) -> Choice:
        tokens, ending = tuple(self._tokens.get(index, ())), self._endings[index]
        text = "".join(token.text for token in tokens) + ending.text
        return Choice(index, text, tokens, ending.finish_reason, ending.stop_reason)


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
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRequestError(f"{label or name}: got {_short(value)}: {error}") from None


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def collect(events: Iterable[Event]) -> Completion:
    """The completion that all events of one request make up. Raises: UnavailableError if they broke off."""
    builder = CompletionBuilder()
    for event in events:
        builder.add(event)
    return builder.build()
