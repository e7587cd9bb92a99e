"""From the shards' last spans to next-token scores over the anchor's vocabulary.

Shapes: R logit rows, S shards, D a shard's width, U its vocabulary, V the anchor's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from braid_fusion.mixing import log_probabilities
from braid_fusion.odds import measure, mix
from braid_fusion.plan import BraidPlan
from braid_orchestrator.engine.lanes import Lanes
from braid_orchestrator.engine.packing import LaneBatch, PackedBatch
from braid_orchestrator.engine.ports import Fusion
from braid_orchestrator.engine.trace import StepTrace
from braid_rpc.steps import SpanResult


@dataclass(frozen=True, slots=True)
class Scores:
    """``scores`` (R, V): logits, whose softmax are the probabilities that the readout gives; ``weights`` (R, S).
    ``row_metrics`` is what fusion points tell of some of the R rows, by row and name."""

    scores: Tensor
    weights: Tensor
    row_metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    """What a shard said last of a session: the head's input (D,) and its logits (U,)."""

    hidden_D: Tensor  # noqa: N815 - shape letters
    logits_U: Tensor  # noqa: N815 - shape letters


class Readout:
    """One engine's readout. It keeps the last row of each session in shards with a tokenizer of their own: the
    anchor may go on for several tokens before such a shard has a new one. Not thread-safe."""

    def __init__(self, fusion: Fusion, plan: BraidPlan, lanes: Lanes) -> None:
        self._fusion = fusion
        self._plan = plan
        self._lanes = lanes
        self._only_anchor = plan.readout.kind == "anchor"
        # Heads padded to different sizes: only ids that all of the anchor's lane have are mixed.
        self._vocab_size = min(
            shard.vocab_size for shard, lane in zip(plan.shards, plan.lane_of, strict=True) if lane == 0
        )
        self._shares_vocabulary = all(lane == 0 for lane in plan.lane_of)
        self._kept: dict[str, dict[int, _Row]] = {}

    def forget(self, session_ids: Iterable[str]) -> None:
        """These sessions are closed."""
        for session_id in session_ids:
            self._kept.pop(session_id, None)

    def forget_all(self) -> None:
        """No session is open any more."""
        self._kept.clear()

    def read_out(
        self, step_id: int, batch: PackedBatch, last: Mapping[int, SpanResult[Tensor]], trace: StepTrace
    ) -> Scores | None:
        """The scores of a batch's logit rows from its last spans' results; None if it has no logit rows.

        Raises: what fusion raises.
        """
        num_rows = len(batch.logit_rows)
        if self._only_anchor:
            return self._of_anchor(num_rows, last[self._plan.anchor].logits) if num_rows else None
        started = time.perf_counter()
        with torch.inference_mode():
            rows = self._rows(batch, last)
            scores = self._mixed(step_id, batch, rows) if num_rows else None
            for shard, lane in enumerate(self._plan.lane_of):
                if lane > 0 and shard in last:
                    self._keep(shard, batch.lanes[lane], last[shard])
        if num_rows:
            trace.add_readout(time.perf_counter() - started)
        return scores

    def _of_anchor(self, num_rows: int, logits_RV: Tensor | None) -> Scores | None:
        if logits_RV is None:
            return None
        weights_RS = torch.zeros(num_rows, len(self._plan.shards))
        weights_RS[:, self._plan.anchor] = 1.0
        return Scores(logits_RV[:, : self._vocab_size], weights_RS)

    def _mixed(self, step_id: int, batch: PackedBatch, rows: list[tuple[Tensor, Tensor]]) -> Scores:
        logits = [logits for _, logits in rows]
        told = logits
        if not self._shares_vocabulary:
            told = self._in_anchors_vocabulary(batch, [log_probabilities(own) for own in logits])
        shards = [measure(shard) for shard in told]
        log_weights_RS = self._fusion.read_out(
            step_id,
            batch.sessions_of_logit_rows(),
            [hidden for hidden, _ in rows],
            torch.stack([shard.features_RN for shard in shards], dim=1),
        )
        weights_RS = log_weights_RS.exp()
        scores_RV = mix(shards, log_weights_RS)
        if not self._shares_vocabulary:
            # On the scale of the shards' own logits, on which a repetition penalty is defined.
            scales_RS = torch.stack([own.logsumexp(-1) for own in logits], dim=-1)
            scores_RV.add_((scales_RS * weights_RS).sum(-1, keepdim=True))
        return Scores(scores_RV, weights_RS)

    def _rows(
        self, batch: PackedBatch, last: Mapping[int, SpanResult[Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per shard the heads' inputs (R, D) and the logits (R, U) that go with the batch's logit rows."""
        rows: list[tuple[Tensor, Tensor]] = []
        sessions = batch.sessions_of_logit_rows()
        for shard, lane in enumerate(self._plan.lane_of):
            if lane > 0:
                rows.append(self._rows_behind(shard, batch.lanes[lane], sessions, last.get(shard)))
                continue
            result = last[shard]
            if result.logits is None:
                raise RuntimeError(f"shard {shard} ran to its end without logits")
            rows.append((result.hidden, result.logits[:, : self._vocab_size]))
        return rows

    def _rows_behind(
        self, shard: int, lane: LaneBatch, sessions: list[str], result: SpanResult[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """From this batch, from the session's last, or (where it said nothing yet) zeros."""
        width, vocab_size = self._plan.shards[shard].width, self._plan.shards[shard].vocab_size
        hidden_RD, logits_RU = torch.zeros(len(sessions), width), torch.zeros(len(sessions), vocab_size)
        for row, (session_id, at) in enumerate(zip(sessions, lane.reads, strict=True)):
            if at >= 0 and result is not None and result.logits is not None:
                hidden_RD[row], logits_RU[row] = result.hidden[at], result.logits[at]
            elif (kept := self._kept.get(session_id, {}).get(shard)) is not None:
                hidden_RD[row], logits_RU[row] = kept.hidden_D, kept.logits_U
        return hidden_RD, logits_RU

    def _in_anchors_vocabulary(self, batch: PackedBatch, log_probs: list[Tensor]) -> list[Tensor]:
        anchor_RV = log_probs[self._plan.anchor]
        projected = []
        for shard, own in enumerate(log_probs):
            vocabulary = self._lanes.vocabulary(shard)
            pending = batch.lanes[self._plan.lane_of[shard]].pending
            projected.append(own if vocabulary is None else vocabulary.project(own, anchor_RV, pending))
        return projected

    def _keep(self, shard: int, lane: LaneBatch, result: SpanResult[Tensor]) -> None:
        if result.logits is None:
            return
        index_of = {row: index for index, row in enumerate(lane.logit_rows)}
        end = 0
        for segment in lane.segments:
            end += segment.num_rows
            at = index_of[end - 1]
            self._kept.setdefault(segment.session_id, {})[shard] = _Row(
                result.hidden[at].clone(), result.logits[at].clone()
            )
