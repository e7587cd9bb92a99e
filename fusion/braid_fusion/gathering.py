"""Brings the states of shards with different tokenizers to each other's rows. Knows no particular strategy.

Letters: T packed rows of one lane, S shards, F fusion width, m all rows of one sequence so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from braid_fusion.alignment.rows import Alignment
from braid_fusion.context import FusionContext
from braid_fusion.row_cache import RowCache
from braid_fusion.strategies.base import Fused, FusionStrategy, fuse_with

# Where in a cache the rows of all shards are kept: apart from what strategies keep there under names of their own.
_HISTORIES = -1


def aligns_itself(strategy: nn.Module) -> bool:
    """Whether a strategy takes each shard's states in the shard's own rows."""
    return isinstance(strategy, FusionStrategy) and strategy.aligns_itself


def fuse_by_lane(
    strategy: nn.Module,
    receivers: Sequence[int],
    states_TF: Sequence[Tensor],
    context: FusionContext,
    alignment: Alignment,
) -> Fused:
    """Run a strategy once per lane that receives. Returns one (T, F) per receiver, in the rows of its lane."""
    histories = [
        _Histories(states_TF[shard], shard, alignment, context.caches) for shard in range(len(states_TF))
    ]
    per_receiver: dict[int, Tensor] = {}
    weights, metrics, row_metrics = [], {}, {}
    for lane in sorted({alignment.lane_of[receiver] for receiver in receivers}):
        if not alignment.lanes[lane].num_rows:  # no strategy is asked for the mean of nothing
            nothing_TF = states_TF[0].new_zeros(0, states_TF[0].shape[1])
            per_receiver.update({r: nothing_TF for r in receivers if alignment.lane_of[r] == lane})
            continue
        aligned_TF = [
            state if alignment.lane_of[shard] == lane else histories[shard].at(alignment, lane)
            for shard, state in enumerate(states_TF)
        ]
        fused = fuse_with(strategy, aligned_TF, context.of_lane(lane))
        for index, receiver in enumerate(receivers):
            if alignment.lane_of[receiver] == lane:
                states = fused.states
                per_receiver[receiver] = states if isinstance(states, Tensor) else states[index]
        metrics.update(fused.metrics)
        if lane == 0:  # rows of other lanes are no tokens of the anchor
            row_metrics = fused.row_metrics
        if fused.weights_TS is not None:
            weights.append(fused.weights_TS)
    return Fused(
        [per_receiver[receiver] for receiver in receivers],
        torch.cat(weights) if weights else None,
        metrics,
        row_metrics,
    )


class _Histories:
    """All rows so far of one shard, by sequence."""

    def __init__(
        self,
        states_TF: Tensor,
        shard: int,
        alignment: Alignment,
        caches: Sequence[RowCache] | None,
    ) -> None:
        rows = alignment.of_shard(shard)
        self._shard = shard
        self._states_TF = states_TF
        self._whole = caches is None
        self._parts = torch.split(states_TF, [*rows.row_counts])
        if caches is not None:
            lane = alignment.lane_of[shard]
            self._parts = tuple(
                cache.lane(lane).part(_HISTORIES).append(str(shard), part)
                for cache, part in zip(caches, self._parts, strict=True)
            )

    def at(self, alignment: Alignment, lane: int) -> Tensor:
        """What each row of a lane sees of this shard, (T, F); zeros where it sees nothing."""
        rows = alignment.lanes[lane]
        seen_T = torch.tensor(rows.seen[alignment.lane_of[self._shard]], device=self._states_TF.device)
        seen_T = seen_T.to(torch.int64)
        if self._states_TF.shape[0] == 0 and self._whole:
            return self._states_TF.new_zeros(rows.num_rows, self._states_TF.shape[1])
        if self._whole:  # one lookup for all sequences: they stand one after the other
            counts = alignment.of_shard(self._shard).row_counts
            begins = [sum(counts[:index]) for index in range(len(counts))]
            offset_T = torch.tensor(begins).repeat_interleave(torch.tensor(rows.row_counts)).to(seen_T.device)
            found_TF = self._states_TF.index_select(
                0, (seen_T.clamp_min(0) + offset_T).clamp_max(self._states_TF.shape[0] - 1)
            )
        else:
            found_TF = torch.cat(
                [
                    part.index_select(0, seen.clamp_min(0))
                    if part.shape[0]
                    else part.new_zeros(len(seen), part.shape[1])
                    for part, seen in zip(self._parts, torch.split(seen_T, [*rows.row_counts]), strict=True)
                ]
            )
        return found_TF.masked_fill((seen_T < 0)[:, None], 0.0)
