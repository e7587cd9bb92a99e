"""A braid, resolved: which shards of which shape exchange states where and how. Plain frozen values.

A plan is made from a configuration and the shards' cards. It decides the shape of every trainable tensor,
so its hash is what saved weights are checked against. Nothing here knows torch or a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class PlanShard:
    """One shard as the fusion modules see it."""

    name: str
    width: int
    num_layers: int
    vocab_size: int
    model_hash: str
    tokenizer_hash: str


@dataclass(frozen=True)
class PlanPoint:
    """A fusion point: states entering layer ``layers[s]`` of shard s are exchanged.

    ``receivers`` are indices of the shards whose states are changed. ``options`` go to the strategy.
    """

    name: str
    layers: tuple[int, ...]
    strategy: str
    fusion_width: int
    injection: str = "residual"
    receivers: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanReadout:
    """How next-token logits come about: ``anchor``, ``mixture`` or ``gate``."""

    kind: str = "anchor"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BraidPlan:
    """The whole. ``anchor`` is an index into ``shards``; points stand in the order of depth."""

    shards: tuple[PlanShard, ...]
    anchor: int
    points: tuple[PlanPoint, ...]
    readout: PlanReadout = field(default_factory=PlanReadout)
    seed: int = 0

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> BraidPlan:
        """The plan that `to_json` wrote. Raises: KeyError, TypeError or ValueError on anything else."""
        raw = json.loads(text)
        return cls(
            shards=tuple(PlanShard(**shard) for shard in raw["shards"]),
            anchor=raw["anchor"],
            points=tuple(
                PlanPoint(
                    **{**point, "layers": tuple(point["layers"]), "receivers": tuple(point["receivers"])}
                )
                for point in raw["points"]
            ),
            readout=PlanReadout(**raw["readout"]),
            seed=raw["seed"],
        )

    def hash(self) -> str:
        """SHA-256 (hex, 16 digits) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def lane_of(self) -> tuple[int, ...]:
        """The lane of each shard. Shards of one tokenizer share a lane; lane 0 is the anchor's."""
        hashes = [self.shards[self.anchor].tokenizer_hash, *(shard.tokenizer_hash for shard in self.shards)]
        lanes = list(dict.fromkeys(hashes))
        return tuple(lanes.index(shard.tokenizer_hash) for shard in self.shards)

    @property
    def num_lanes(self) -> int:
        """How many different tokenizers the shards have."""
        return max(self.lane_of) + 1

    def spans(self, shard: int) -> tuple[tuple[int, int], ...]:
        """The spans of layers between the fusion points, for one shard: one more than there are points."""
        cuts = [0, *(point.layers[shard] for point in self.points), self.shards[shard].num_layers]
        return tuple(pairwise(cuts))
