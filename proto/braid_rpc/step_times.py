"""Where the time of the steps went that a request took part in, as plain values. For whoever asks for timings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PartTimes:
    """``count`` spans of a shard, or exchanges at a fusion point, in seconds: the other side's own arithmetic, what
    the messages took beyond that, waiting there for other callers, and serialising on both sides."""

    count: int
    compute_s: float
    wire_s: float
    wait_s: float
    serialize_s: float


@dataclass(frozen=True, slots=True)
class StepTimes:
    """A step works for all requests of its batch, and counts whole for each. ``wall_s`` is of ``count`` steps, from
    the first message to the scores; ``shards`` work at the same time, so theirs are not to be summed."""

    count: int
    wall_s: float
    readout_s: float
    shards: Mapping[str, PartTimes] = field(default_factory=dict)
    points: Mapping[str, PartTimes] = field(default_factory=dict)
