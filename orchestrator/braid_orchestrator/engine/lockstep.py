"""One packed batch through all shards, span by span, with an exchange of states between the spans.

This is the braid itself. It knows shards and fusion only through `ports`, and nothing of requests, sampling or
text: rows go in, next-token scores come out.

Shapes: T packed rows, R logit rows, S shards, D a shard's width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_fusion.mixing import distribution_features, log_probabilities, mix_distributions
from braid_fusion.plan import BraidPlan
from braid_orchestrator.engine.ports import Fusion, Shard
from braid_orchestrator.engine.trace import StepTrace
from braid_rpc.steps import Segment, SpanResult, SpanStep


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows of several sessions, without padding: ``token_ids`` (T,) int64, the segments in the rows' order."""

    segments: tuple[Segment, ...]
    token_ids: Tensor
    logit_rows: tuple[int, ...]

    def sessions_of_logit_rows(self) -> list[str]:
        """The session that each logit row belongs to."""
        owners = [segment.session_id for segment in self.segments for _ in range(segment.num_rows)]
        return [owners[row] for row in self.logit_rows]


@dataclass(frozen=True, slots=True)
class Scores:
    """``scores`` (R, V): logits, whose softmax are the probabilities that the readout gives; ``weights`` (R, S)."""

    scores: Tensor
    weights: Tensor


class LockStep:
    """Drives the shards of one plan. Not thread-safe: one batch at a time."""

    def __init__(self, shards: Sequence[Shard], fusion: Fusion, plan: BraidPlan) -> None:
        self._shards = shards
        self._fusion = fusion
        self._plan = plan
        self._spans = [plan.spans(index) for index in range(len(shards))]
        self._step_id = 0
        self._only_anchor_reads_out = plan.readout.kind == "anchor"
        self._vocab_size = min(shard.vocab_size for shard in plan.shards)

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
        last: dict[int, SpanResult[Tensor]] = {}
        for span in range(num_points + 1):
            running = [s for s in self.braided_shards() if span < num_points or self._runs_to_end(s)]
            steps = {shard: self._span_step(shard, span, batch, hidden) for shard in running}
            last = self._run_at_once(span, steps, dict.fromkeys(running, batch), trace)
            if span < num_points:
                hidden = self._exchange(
                    span, batch.segments, [last[shard].hidden for shard in running], trace
                )
        return self._read_out(batch, last, trace) if batch.logit_rows else None

    def run_alone(self, batches: dict[int, PackedBatch], trace: StepTrace) -> dict[int, Scores]:
        """One batch per shard, each from its embedding to its head, all shards at the same time."""
        self._step_id += 1
        steps: dict[int, SpanStep[Tensor]] = {
            shard: SpanStep(
                self._step_id,
                0,
                self._plan.shards[shard].num_layers,
                True,
                segments=batch.segments,
                token_ids=batch.token_ids,
                logit_rows=batch.logit_rows,
            )
            for shard, batch in batches.items()
        }
        scores: dict[int, Scores] = {}
        for shard, result in self._run_at_once(-1, steps, batches, trace).items():
            if batches[shard].logit_rows and result.logits is not None:
                weights = torch.zeros(len(batches[shard].logit_rows), len(self._shards))
                weights[:, shard] = 1.0
                scores[shard] = Scores(result.logits, weights)
        return scores

    def _reads_out(self, shard: int) -> bool:
        return shard == self._plan.anchor or not self._only_anchor_reads_out

    def _runs_to_end(self, shard: int) -> bool:
        """Layers whose output nobody reads are left out; a session of no layers at all can't be."""
        return self._reads_out(shard) or self._spans[shard][-2][1] == 0

    def _span_step(self, shard: int, span: int, batch: PackedBatch, hidden: list[Tensor]) -> SpanStep[Tensor]:
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
            segments=batch.segments,
            token_ids=batch.token_ids,
            logit_rows=batch.logit_rows if self._reads_out(shard) else (),
        )

    def _run_at_once(
        self,
        span: int,
        steps: dict[int, SpanStep[Tensor]],
        batches: Mapping[int, PackedBatch],
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
                    for segment in batches[shard].segments:
                        self._shards[shard].crop(segment.session_id, segment.position)
            raise failures[0]
        trace.add_span(span, started, sent_s, got_s, {s: r.timings for s, r in results.items()})
        return results

    def _exchange(
        self, point: int, segments: Sequence[Segment], states: list[Tensor], trace: StepTrace
    ) -> list[Tensor]:
        started = time.perf_counter()
        result = self._fusion.fuse(self._step_id, point, segments, states)
        trace.add_fusion(point, time.perf_counter() - started, result.timings)
        return [own if fused is None else fused for own, fused in zip(states, result.states, strict=True)]

    def _read_out(self, batch: PackedBatch, last: dict[int, SpanResult[Tensor]], trace: StepTrace) -> Scores:
        logits = {
            shard: result.logits[:, : self._vocab_size]
            for shard, result in last.items()
            if self._reads_out(shard) and result.logits is not None
        }
        if self._only_anchor_reads_out:
            weights = torch.zeros(len(batch.logit_rows), len(self._shards))
            weights[:, self._plan.anchor] = 1.0
            return Scores(logits[self._plan.anchor], weights)
        started = time.perf_counter()
        with torch.inference_mode():
            log_probs = [log_probabilities(shard) for shard in logits.values()]
            probs = [shard.exp() for shard in log_probs]
            log_weights = self._fusion.read_out(
                self._step_id,
                batch.sessions_of_logit_rows(),
                [result.hidden for result in last.values()],
                distribution_features(log_probs, probs),
            )
            weights = log_weights.exp()
            # On the scale of the shards' own logits, on which a repetition penalty is defined.
            scales = [
                own.amax(-1) - normed.amax(-1) for own, normed in zip(logits.values(), log_probs, strict=True)
            ]
            scale_R1 = (torch.stack(scales, dim=-1) * weights).sum(-1, keepdim=True)
            mixed = mix_distributions(log_probs, probs, log_weights).add_(scale_R1)
        trace.add_readout(time.perf_counter() - started)
        return Scores(mixed, weights)
