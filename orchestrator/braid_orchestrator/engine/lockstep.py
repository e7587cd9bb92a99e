"""One packed batch through all shards, span by span, with an exchange of states between the spans.

This is the braid itself. It knows shards and fusion only through `ports`, and nothing of requests, sampling or
text: rows go in, next-token scores come out.

Shapes: T packed rows of a lane, R logit rows, S shards, D a shard's width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from braid_fusion.plan import BraidPlan
from braid_orchestrator.engine.lanes import Lanes
from braid_orchestrator.engine.packing import LaneBatch, PackedBatch
from braid_orchestrator.engine.ports import Fusion, Shard
from braid_orchestrator.engine.readout import Readout, Scores
from braid_orchestrator.engine.trace import StepTrace
from braid_rpc.steps import SpanResult, SpanStep


class LockStep:
    """Drives the shards of one plan. Not thread-safe: one batch at a time."""

    def __init__(self, shards: Sequence[Shard], fusion: Fusion, plan: BraidPlan, lanes: Lanes) -> None:
        self._shards = shards
        self._fusion = fusion
        self._plan = plan
        self._spans = [plan.spans(index) for index in range(len(shards))]
        self._step_id = 0
        self._only_anchor_reads_out = plan.readout.kind == "anchor"
        self._lane_of = plan.lane_of
        self._readout = Readout(fusion, plan, lanes)

    def braided_shards(self) -> list[int]:
        """The shards that a braided session needs: all, or the anchor alone if nothing is ever exchanged."""
        if self._only_anchor_reads_out and not self._plan.points:
            return [self._plan.anchor]
        return list(range(len(self._shards)))

    def end_layer(self, shard: int) -> int:
        """Where a braided session's forward ends on this shard (0: after its last layer)."""
        return 0 if self._runs_to_end(shard) else self._spans[shard][-2][1]

    def run_braided(self, batch: PackedBatch, trace: StepTrace) -> Scores | None:
        """All shards in lock step. None if no logits were asked for. Raises: what shards and fusion raise."""
        self._step_id += 1
        num_points = len(self._plan.points)
        hidden: list[Tensor] = []
        told: list[Mapping[str, Sequence[float]]] = []
        last: dict[int, SpanResult[Tensor]] = {}
        for span in range(num_points + 1):
            braided = [s for s in self.braided_shards() if span < num_points or self._runs_to_end(s)]
            # A shard whose text lags has nothing to do.
            running = {s: batch.lanes[self._lane_of[s]] for s in braided if self._rows(batch, s)}
            steps = {shard: self._span_step(shard, span, lane, hidden) for shard, lane in running.items()}
            last = self._run_at_once(span, steps, running, trace)
            if span < num_points:
                states = [last[s].hidden if s in last else self._no_rows(s) for s in braided]
                hidden, row_metrics = self._exchange(span, batch, states, trace)
                told.append(row_metrics)
        scores = self._readout.read_out(self._step_id, batch, last, trace)
        if scores is None or not batch.metric_rows:
            return scores
        return replace(scores, row_metrics=_by_logit_row(batch, told))

    def forget(self, session_ids: Iterable[str]) -> None:
        """These sessions are closed."""
        self._readout.forget(session_ids)

    def forget_all(self) -> None:
        """No session is open any more."""
        self._readout.forget_all()

    def run_alone(self, batches: dict[int, PackedBatch], trace: StepTrace) -> dict[int, Scores]:
        """One batch per shard, each from its embedding to its head, all shards at the same time."""
        self._step_id += 1
        steps: dict[int, SpanStep[Tensor]] = {
            shard: SpanStep(
                self._step_id,
                0,
                self._plan.shards[shard].num_layers,
                True,
                segments=batch.lanes[0].segments,
                token_ids=batch.lanes[0].token_ids,
                logit_rows=batch.lanes[0].logit_rows,
            )
            for shard, batch in batches.items()
        }
        scores: dict[int, Scores] = {}
        lanes = {shard: batch.lanes[0] for shard, batch in batches.items()}
        for shard, result in self._run_at_once(-1, steps, lanes, trace).items():
            if lanes[shard].logit_rows and result.logits is not None:
                weights = torch.zeros(len(lanes[shard].logit_rows), len(self._shards))
                weights[:, shard] = 1.0
                scores[shard] = Scores(result.logits, weights)
        return scores

    def _reads_out(self, shard: int) -> bool:
        return shard == self._plan.anchor or not self._only_anchor_reads_out

    def _runs_to_end(self, shard: int) -> bool:
        """Layers whose output nobody reads are left out; a session of no layers at all can't be."""
        return self._reads_out(shard) or self._spans[shard][-2][1] == 0

    def _rows(self, batch: PackedBatch, shard: int) -> int:
        return batch.lanes[self._lane_of[shard]].token_ids.shape[0]

    def _no_rows(self, shard: int) -> Tensor:
        return torch.empty(0, self._plan.shards[shard].width)

    def _span_step(self, shard: int, span: int, lane: LaneBatch, hidden: list[Tensor]) -> SpanStep[Tensor]:
        start, end = self._spans[shard][span]
        num_points = len(self._plan.points)
        final = span == num_points or (span == num_points - 1 and not self._runs_to_end(shard))
        if span > 0:
            return SpanStep(self._step_id, start, end, final, hidden=hidden[shard])
        return SpanStep(
            self._step_id,
            start,
            end,
            final,
            segments=lane.segments,
            token_ids=lane.token_ids,
            logit_rows=lane.logit_rows if self._reads_out(shard) else (),
        )

    def _run_at_once(
        self,
        span: int,
        steps: dict[int, SpanStep[Tensor]],
        lanes: Mapping[int, LaneBatch],
        trace: StepTrace,
    ) -> dict[int, SpanResult[Tensor]]:
        """All shards work at the same time. Every answer that was asked for is taken before the first error is
        raised, so that no stream is left out of step; and a shard that finished its batch takes it back."""
        started = time.perf_counter()
        results: dict[int, SpanResult[Tensor]] = {}
        failures: list[Exception] = []
        sent_s: dict[int, float] = {}
        got_s: dict[int, float] = {}
        for shard, step in steps.items():
            begun_s = time.perf_counter()
            try:
                self._shards[shard].send_step(step)
            except Exception as error:  # noqa: BLE001 - raised again below
                failures.append(error)
                break
            sent_s[shard] = begun_s
        for shard in sent_s:
            try:
                results[shard] = self._shards[shard].receive_step()
            except Exception as error:  # noqa: BLE001 - raised again below
                failures.append(error)
            got_s[shard] = time.perf_counter()
        if failures:
            for shard in results:
                if steps[shard].final:
                    for segment in lanes[shard].segments:
                        self._shards[shard].crop(segment.session_id, segment.position)
            raise failures[0]
        trace.add_span(span, started, sent_s, got_s, {s: r.timings for s, r in results.items()})
        return results

    def _exchange(
        self, point: int, batch: PackedBatch, states: list[Tensor], trace: StepTrace
    ) -> tuple[list[Tensor], Mapping[str, Sequence[float]]]:
        started = time.perf_counter()
        result = self._fusion.fuse(
            self._step_id, point, batch.lanes[0].segments, states, batch.fusion_lanes(), batch.metric_rows
        )
        trace.add_fusion(point, time.perf_counter() - started, result.timings)
        fused = [own if new is None else new for own, new in zip(states, result.states, strict=True)]
        return fused, result.row_metrics


def _by_logit_row(
    batch: PackedBatch, told: Iterable[Mapping[str, Sequence[float]]]
) -> dict[int, dict[str, float]]:
    """What the points told of a batch's rows, by logit row and name: the mean over the points that told it."""
    index_of = {row: index for index, row in enumerate(batch.logit_rows)}
    values: dict[int, dict[str, list[float]]] = {index_of[row]: {} for row in batch.metric_rows}
    for row_metrics in told:
        for name, of_rows in row_metrics.items():
            for row, value in zip(batch.metric_rows, of_rows, strict=True):
                values[index_of[row]].setdefault(name, []).append(value)
    return {
        row: {name: sum(found) / len(found) for name, found in named.items()} for row, named in values.items()
    }
