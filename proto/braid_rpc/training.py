"""What passes between a trainer and a shard: one span over whole sequences, forward and backward, as plain values.

Nothing of it needs a session: a span is told all that it depends on. The same records serve torch tensors and numpy
arrays, hence the type parameter.

Shapes: T packed rows, R logit rows, D the shard's width, V its vocabulary, N features per shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Generic, TypeVar

from braid_rpc.steps import Timings

ArrayT = TypeVar("ArrayT")


@dataclass(frozen=True, slots=True)
class HeadInputs(Generic[ArrayT]):
    """What is wanted of the head at the end of the last span, at the R rows ``logit_rows`` (None: all T).

    ``targets`` (R,) int64 are the tokens whose log-probabilities are wanted. Probabilities are over the first
    ``vocab_size`` tokens (0: all).
    """

    logit_rows: ArrayT | None = None
    targets: ArrayT | None = None
    vocab_size: int = 0
    want_features: bool = False
    want_logits: bool = False


@dataclass(frozen=True, slots=True)
class SpanInputs(Generic[ArrayT]):
    """Layers ``[start_layer, end_layer)`` over packed whole sequences of ``lengths``.

    ``token_ids`` (T,) are theirs. ``hidden`` (T, D) enters ``start_layer``; None, at layer 0 only: what the embedding
    gives. ``head`` is there where the span ends behind the last layer, and nowhere else.
    """

    start_layer: int
    end_layer: int
    lengths: tuple[int, ...]
    token_ids: ArrayT
    hidden: ArrayT | None = None
    head: HeadInputs[ArrayT] | None = None


@dataclass(frozen=True, slots=True)
class SpanOutputs(Generic[ArrayT]):
    """What a span gives, or gradients with respect to that; None for what was not asked for.

    ``hidden`` (T, D) are the states at its end; after the head (R, D), the head's input at the logit rows.
    ``target_logprobs`` (R,) and ``features`` (R, N) are at least in float32, ``logits`` (R, V) in the model's dtype.
    """

    hidden: ArrayT | None = None
    target_logprobs: ArrayT | None = None
    features: ArrayT | None = None
    logits: ArrayT | None = None

    def items(self) -> list[tuple[str, ArrayT]]:
        """The values that are there, by name, always in the same order."""
        named = [(one.name, getattr(self, one.name)) for one in fields(self)]
        return [(name, value) for name, value in named if value is not None]


@dataclass(frozen=True, slots=True)
class ForwardResult(Generic[ArrayT]):
    """``model_hash`` says which model computed it."""

    outputs: SpanOutputs[ArrayT]
    model_hash: str
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class BackwardResult(Generic[ArrayT]):
    """``hidden`` (T, D) is the gradient with respect to the states that entered the span. None: the graph is gone,
    and the span's inputs have to be sent again."""

    hidden: ArrayT | None
    model_hash: str
    timings: Timings = field(default_factory=Timings)
