"""Each receiver's positions attend to the other shards' positions, up to their own.

Letters: T packed rows, S shards, F fusion width, H heads, K head width; n rows of one sequence in this call,
m of all its rows so far; B sequences of one length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid_fusion.alignment.rows import Alignment
from braid_fusion.context import FusionContext
from braid_fusion.errors import PlanError
from braid_fusion.initialisation import linear
from braid_fusion.row_cache import contiguous_rows
from braid_fusion.strategies.base import Fused, FusionStrategy
from braid_fusion.strategies.registry import register_strategy
from braid_fusion.whole_number import whole_number

MAX_OFFSET = 2**16


@register_strategy("attention")
class AttentionFusion(FusionStrategy):
    """Causal cross-attention with one softmax over all givers' positions.

    score = q·k / √K + bias[receiver, giver, head, min(offset, max_offset)] with offset = own position − the
    giver's position ≥ 0. The bias is learned; it starts as a slope per head, steep for the first head and
    nearly flat for the last, so that some heads see their neighbourhood from the first step on. Values pass a
    gate, silu(G x) ⊙ V x: composing what two models know needs more than a linear map of the giver's state.
    Keys and values of each giver are kept per sequence.
    """

    keeps_rows = True
    aligns_itself = True

    def __init__(
        self,
        num_models: int,
        hidden_dim: int,
        num_heads: int | None = None,
        max_offset: int = 64,
        receivers: Sequence[int] | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if num_models < 2:
            raise PlanError(
                f"attention: got {num_models} shard, expected at least 2: it attends to the others"
            )
        if num_heads is None:
            num_heads = next(count for count in (8, 4, 2, 1) if hidden_dim % count == 0)
        heads = whole_number("attention: num_heads", num_heads, 1, hidden_dim)
        if hidden_dim % heads:
            raise PlanError(
                f"attention: num_heads: got {num_heads}, expected a divisor of the width {hidden_dim}"
            )
        whole_number("attention: max_offset", max_offset, 0, MAX_OFFSET)
        self.num_heads, self.head_width, self.max_offset = heads, hidden_dim // heads, max_offset
        self._num_shards = num_models
        self.receivers = tuple(range(num_models) if receivers is None else receivers)
        self.givers = tuple(s for s in range(num_models) if any(r != s for r in self.receivers))
        self.queries = nn.ModuleList(linear(hidden_dim, hidden_dim, generator) for _ in self.receivers)
        # Without bias: where there is one giver, a key's bias would shift all scores of a row alike.
        self.keys_and_values = nn.ModuleList(
            linear(hidden_dim, 3 * hidden_dim, generator, bias=False) for _ in self.givers
        )
        slope_H = 2.0 ** -torch.linspace(0.0, 8.0, heads)
        start_HO = -slope_H[:, None] * torch.arange(max_offset + 1)
        self.offset_bias = nn.ParameterDict(
            {
                f"{receiver}_{giver}": nn.Parameter(start_HO.clone())
                for receiver in self.receivers
                for giver in self.givers
                if giver != receiver
            }
        )

    def fuse(self, states_TF: Sequence[Tensor], context: FusionContext) -> Fused:
        """Returns one (T, F) per receiver. Raises: PlanError if pieces of sequences come without caches."""
        if context.caches is None and any(context.positions):
            raise PlanError(
                "attention: got rows from the middle of a sequence, expected its caches with them"
            )
        heads_THK = (-1, self.num_heads, self.head_width)
        queries = [
            query(states_TF[receiver]).view(heads_THK)
            for receiver, query in zip(self.receivers, self.queries, strict=True)
        ]
        keys, values = [], []
        for giver, project in zip(self.givers, self.keys_and_values, strict=True):
            key_TF, gate_TF, value_TF = project(states_TF[giver]).chunk(3, dim=-1)
            keys.append(key_TF.reshape(heads_THK))
            values.append((functional.silu(gate_TF) * value_TF).view(heads_THK))
        if context.alignment is None:
            pieces = self._attend_by_sequence(queries, keys, values, context)
        else:
            pieces = self._attend_across_lanes(queries, keys, values, context, context.alignment)
        states = [
            (outs[0] if len(outs) == 1 else torch.cat(outs)).flatten(1)
            for outs in ([piece[0][i] for piece in pieces] for i in range(len(self.receivers)))
        ]
        if not context.want_metrics:
            return Fused(states)
        return Fused(states, torch.cat([piece[1] for piece in pieces]))

    def _attend_by_sequence(
        self, queries: list[Tensor], keys: list[Tensor], values: list[Tensor], context: FusionContext
    ) -> list[tuple[list[Tensor], Tensor]]:
        counts, caches = context.row_counts, context.caches
        if caches is None and len(set(counts)) == 1:  # equal lengths, as in training: one batch
            shape = (len(counts), counts[0], self.num_heads, self.head_width)
            q, k, v = ([tensor.view(shape) for tensor in group] for group in (queries, keys, values))
            return [self._attend(q, k, v, context.want_metrics)]
        pieces, start = [], 0
        for index, count in enumerate(counts):
            q, k, v = ([contiguous_rows(t, start, count) for t in group] for group in (queries, keys, values))
            if caches is not None:
                k = [caches[index].append(f"key/{g}", rows) for g, rows in zip(self.givers, k, strict=True)]
                v = [caches[index].append(f"value/{g}", rows) for g, rows in zip(self.givers, v, strict=True)]
            pieces.append(self._attend(q, k, v, context.want_metrics))
            start += count
        return pieces

    def _attend_across_lanes(
        self,
        queries: list[Tensor],
        keys: list[Tensor],
        values: list[Tensor],
        context: FusionContext,
        alignment: Alignment,
    ) -> list[tuple[list[Tensor], Tensor]]:
        """Each receiver's rows, in its own lane, see of each giver the positions that the alignment tells."""
        pieces = []
        starts = [0] * len(alignment.lanes)
        for index in range(len(context.row_counts)):
            spans = [
                (start, lane.row_counts[index]) for start, lane in zip(starts, alignment.lanes, strict=True)
            ]
            starts = [start + count for start, count in spans]
            q = [
                queries[i].narrow(0, *spans[alignment.lane_of[receiver]])
                for i, receiver in enumerate(self.receivers)
            ]
            k, v = (
                [
                    rows.narrow(0, *spans[alignment.lane_of[giver]])
                    for giver, rows in zip(self.givers, group, strict=True)
                ]
                for group in (keys, values)
            )
            if context.caches is not None:
                lanes = [context.caches[index].lane(alignment.lane_of[giver]) for giver in self.givers]
                k = [
                    lane.append(f"key/{g}", rows) for lane, g, rows in zip(lanes, self.givers, k, strict=True)
                ]
                v = [
                    lane.append(f"value/{g}", rows)
                    for lane, g, rows in zip(lanes, self.givers, v, strict=True)
                ]
            outs, shares = [], []
            for i, receiver in enumerate(self.receivers):
                start, count = spans[alignment.lane_of[receiver]]
                by_lane = alignment.of_shard(receiver).seen
                seen = [by_lane[alignment.lane_of[giver]][start : start + count] for giver in self.givers]
                out, share = self._attend_to_seen(
                    receiver, q[i], k, v, [torch.tensor(s).long() for s in seen]
                )
                outs.append(out)
                if alignment.lane_of[receiver] == 0:
                    shares.append(share)
            pieces.append((outs, torch.stack(shares).mean(0) if shares else queries[0].new_empty(0)))
        return pieces

    def _attend_to_seen(
        self, receiver: int, query: Tensor, keys: list[Tensor], values: list[Tensor], seen: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """A query (n, H, K) sees of giver i the positions up to ``seen[i]`` (n,): outputs (n, H, K), zeros where it
        sees nothing at all, and how much went to each shard, (n, S)."""
        others = [i for i, giver in enumerate(self.givers) if giver != receiver]
        query_HnK = query.transpose(0, 1) * self.head_width**-0.5
        scores, hidden = [], []
        for i in others:
            offsets_nm = seen[i][:, None] - torch.arange(keys[i].shape[0])
            offsets_nm = offsets_nm.to(query.device)
            bias = self.offset_bias[f"{receiver}_{self.givers[i]}"][:, offsets_nm.clamp(0, self.max_offset)]
            scores.append(query_HnK @ keys[i].permute(1, 2, 0) + bias)
            hidden.append(offsets_nm < 0)
        hidden_nm = torch.cat(hidden, dim=-1)
        blind_n1 = hidden_nm.all(-1, keepdim=True)
        scores_Hnm = torch.cat(scores, dim=-1).masked_fill(hidden_nm & ~blind_n1, -torch.inf)
        mass_Hnm = scores_Hnm.softmax(-1).masked_fill(blind_n1, 0.0)
        mass = torch.split(mass_Hnm, [keys[i].shape[0] for i in others], dim=-1)
        out_HnK = query_HnK.new_zeros(query_HnK.shape)
        for i, share in zip(others, mass, strict=True):
            out_HnK = out_HnK + share @ values[i].transpose(0, 1)
        return out_HnK.transpose(0, 1), self._shares([self.givers[i] for i in others], mass)

    def _attend(
        self, queries: list[Tensor], keys: list[Tensor], values: list[Tensor], want_metrics: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Queries (B?, n, H, K) at the end of keys and values (B?, m, H, K): outputs (T, H, K), and how much
        went to each shard, (T, S), empty unless wanted."""
        n, m = queries[0].shape[-3], keys[0].shape[-3]
        if n == 0:  # a sequence that has no row in this lane
            return [query.flatten(0, -3) for query in queries], queries[0].new_zeros(0, self._num_shards)
        offsets = torch.arange(m, device=keys[0].device).clamp_(max=self.max_offset)
        keys_HKm = [key.transpose(-3, -2).mT for key in keys]
        values_HmK = [value.transpose(-3, -2) for value in values]
        outs, shares = [], []
        for query, receiver in zip(queries, self.receivers, strict=True):
            others = [i for i, giver in enumerate(self.givers) if giver != receiver]
            query_HnK = query.transpose(-3, -2) * self.head_width**-0.5
            scores = [
                query_HnK @ keys_HKm[i]
                + relative_bias(self.offset_bias[f"{receiver}_{self.givers[i]}"], offsets, n)
                for i in others
            ]
            mass = (scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)).softmax(-1).split(m, dim=-1)
            out = mass[0] @ values_HmK[others[0]]
            for i, share in zip(others[1:], mass[1:], strict=True):
                out = out + share @ values_HmK[i]
            outs.append(out.transpose(-3, -2).flatten(0, -3))
            if want_metrics:
                shares.append(self._shares([self.givers[i] for i in others], mass))
        return outs, torch.stack(shares).mean(0) if want_metrics else queries[0].new_empty(0)

    def _shares(self, givers: list[int], mass: Sequence[Tensor]) -> Tensor:
        by_giver = {g: share.sum(-1).mean(-2).flatten() for g, share in zip(givers, mass, strict=True)}
        zero_T = torch.zeros_like(next(iter(by_giver.values())))
        return torch.stack([by_giver.get(shard, zero_T) for shard in range(self._num_shards)], dim=-1)


def relative_bias(table_HO: Tensor, offsets_m: Tensor, n: int) -> Tensor:
    """(H, n, m): the bias of the last n of m positions towards all m; minus infinity towards later ones.

    Args:
        table_HO: a bias per head and offset.
        offsets_m: for each of the offsets 0 … m - 1, which column of the table it has.
        n: at most m.
    """
    if n == 1:
        return table_HO.index_select(-1, offsets_m.flip(0)).unsqueeze(-2)
    # Only the offset matters: offset + n - 1 indexes `line`, and a window of it, reversed, is a row.
    later_HO = table_HO.new_full((table_HO.shape[0], n - 1), -torch.inf)
    line_HO = torch.cat([later_HO, table_HO.index_select(-1, offsets_m)], dim=-1)
    return line_HO.unfold(-1, offsets_m.shape[0], 1).flip(-1)
