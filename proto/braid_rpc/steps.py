"""What passes between an engine and a shard, as plain values. Knows no encoding and no array library.

The same records serve torch tensors in process and numpy arrays in a client, hence the type parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

ArrayT = TypeVar("ArrayT")


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one session in a packed batch; the first row is at ``position`` of the session."""

    session_id: str
    position: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Lane:
    """A batch's rows in the shards of one tokenizer, where shards have different ones: ``seen[lane][row]`` is the
    position in each lane of the last token that may be seen from a row (-1: none). Sessions without a row there
    have no segment."""

    segments: tuple[Segment, ...]
    seen: tuple[tuple[int, ...], ...]

    @property
    def num_rows(self) -> int:
        """Of all segments."""
        return sum(segment.num_rows for segment in self.segments)


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session to open: room for ``num_tokens`` now; layers from ``end_layer`` on never run (0: all do)."""

    session_id: str
    num_tokens: int
    end_layer: int = 0


@dataclass(frozen=True, slots=True)
class SpanStep(Generic[ArrayT]):
    """One span ``[start_layer, end_layer)`` over one packed batch of T rows.

    A batch begins with a span at layer 0, which carries ``segments``, ``token_ids`` (T,) int64 and
    ``logit_rows`` (the rows whose logits are wanted at the end), and goes on span by span, under the same
    ``step_id``, with one of three: ``hidden`` (T, D); ``update`` (T, D), which is added to the states that the
    span before gave; or ``unchanged``, which goes on with those as they are. What it appended to the
    caches counts from its ``final`` span on; a batch that is never brought there leaves no trace.
    """

    step_id: int
    start_layer: int
    end_layer: int
    final: bool
    segments: tuple[Segment, ...] = ()
    token_ids: ArrayT | None = None
    logit_rows: tuple[int, ...] = ()
    hidden: ArrayT | None = None
    update: ArrayT | None = None
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one step went on the server, in seconds."""

    compute_s: float = 0.0
    wait_s: float = 0.0
    serialize_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SpanResult(Generic[ArrayT]):
    """``hidden`` is (T, D) at ``end_layer``; after the last layer (R, D), the head's input at the R logit rows,
    and ``logits`` (R, V)."""

    hidden: ArrayT
    logits: ArrayT | None = None
    timings: Timings = field(default_factory=Timings)
    cache_bytes_free: int = 0
