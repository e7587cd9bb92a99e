"""What a braid is asked and what it answers, as plain values. Knows no messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from braid_rpc.stability import ChoiceStability, StabilityOptions, TokenStability
from braid_rpc.step_times import StepTimes

Prompt = str | Sequence[int]
UseBraiding = bool | Literal["auto"]


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`; what is left out is the server's default.

    ``n`` choices are generated for one prompt. With ``use_braiding`` false one shard answers alone: ``shard``, or
    the anchor; with "auto" the service decides. ``logprobs`` is how many alternatives to report per token.
    ``timeout_s`` holds for everything.
    ``timings`` asks where the time of its steps went, ``stability`` how stable the text is.
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
    use_braiding: UseBraiding
    shard: str
    model: str
    request_id: str
    timeout_s: float
    timings: bool
    stability: StabilityOptions


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted; ``model`` is the braid's name, or the shard's that answers alone. ``braided`` tells
    which, ``answered_by`` is that name again."""

    request_id: str
    model: str
    prompt_tokens: int
    weights_version: str
    braided: bool = True
    answered_by: str = ""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """An alternative that the model considered."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token of choice ``index``. ``text`` is what became certain with it: perhaps nothing, never half a
    character. ``weights`` says how much each shard had in the token's probability; they sum to one. ``stability``
    only with `StabilityOptions`."""

    index: int
    token_id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    stability: TokenStability | None = None


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """Choice ``index`` is complete: ``finish_reason`` is "stop", "length" or "instability", ``stop_reason`` the stop
    string or token id that ended it, empty otherwise. ``text`` had been held back until now. ``stability`` only with
    `StabilityOptions`."""

    index: int
    finish_reason: str
    stop_reason: str
    text: str
    stability: ChoiceStability | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """In seconds since the server took the request; ``queue_s`` is how long it waited. Only with ``timings``: the
    mean time between two tokens of a choice (None for one token), and where the time of the request's steps went."""

    queue_s: float
    time_to_first_token_s: float
    total_s: float
    time_per_output_token_s: float | None = None
    steps: StepTimes | None = None


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
    stability: ChoiceStability | None = None

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
    """The whole answer. ``text``, ``tokens``, ``weights``, ``finish_reason`` and ``stability`` are those of the first
    choice."""

    request_id: str
    model: str
    weights_version: str
    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int
    timings: Timings
    braided: bool = True
    answered_by: str = ""

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
        """Why it ended: "stop", "length" or "instability"."""
        return self.choices[0].finish_reason

    @property
    def stability(self) -> ChoiceStability | None:
        """How stable it was; None if that was not asked for."""
        return self.choices[0].stability


@dataclass(frozen=True, slots=True)
class Score:
    """``logprobs[i]`` is the natural log-probability of token i given those before; the first has none: 0.
    ``answered_by`` the braid, or with ``braided`` false the shard of that name alone."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    num_bytes: int
    braided: bool = True
    answered_by: str = ""

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
