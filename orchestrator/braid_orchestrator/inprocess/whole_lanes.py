"""Whole texts in all lanes: what shards with other tokenizers read of them, and how their rows relate.

Shapes: T packed rows of a lane, R logit rows of the anchor, U a shard's vocabulary, V the anchor's.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from braid_fusion.alignment import Alignment, Weave
from braid_fusion.alignment.weave import align
from braid_fusion.mixing import log_probabilities
from braid_fusion.plan import BraidPlan
from braid_orchestrator.engine.lanes import Lanes, WovenText
from braid_orchestrator.engine.packing import WovenRows, pack_lane
from braid_rpc.cards import ShardCard
from braid_rpc.errors import ContextLengthError

OnCut = Callable[[int], None]

_log = logging.getLogger(__name__)
_KEPT_LANES = 8
_lanes_of_plans: OrderedDict[tuple[object, ...], Lanes] = OrderedDict()
_lanes_lock = threading.Lock()


class CutWarning:
    """Says that a sequence is run in parts, the first time that one is."""

    def __init__(self) -> None:
        self._has_warned = False

    def __call__(self, length: int) -> None:
        """Told of every one."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "a window of %d tokens takes more tokens of another shard's tokenizer than its context: it is run in "
                "parts, as others will be; a shorter window keeps more of its context",
                length,
            )


class Reader(Protocol):
    """What is asked of a shard: how it reads."""

    @property
    def card(self) -> ShardCard:
        """What the shard says about itself."""

    def tokenizer_json(self) -> str:
        """Its tokenizer in the format of the `tokenizers` library."""


@dataclass(frozen=True, slots=True)
class WholeRows:
    """What the shards of one lane run: sequences of ``lengths``, and the rows whose logits are wanted.

    ``reads_R`` tells which of these goes with each of the anchor's logit rows (-1: none); None: they are these.
    """

    token_ids_T: Tensor  # noqa: N815 - shape letters
    lengths: list[int]
    logit_rows: Sequence[int]
    reads_R: Tensor | None = None  # noqa: N815 - shape letters
    pending: tuple[bytes | None, ...] = ()

    @property
    def takes_all_rows(self) -> bool:
        """Whether the logits of all rows are wanted, in order."""
        return self.logit_rows == range(self.token_ids_T.shape[0])

    def at_logit_rows(self, rows_X: Tensor) -> Tensor:
        """Results of `logit_rows` as (R, …), zeros where there is none."""
        if self.reads_R is None:
            return rows_X
        padded = torch.cat([rows_X, rows_X.new_zeros(1, *rows_X.shape[1:])])
        return padded.index_select(0, self.reads_R.to(rows_X.device).remainder(padded.shape[0]))


@dataclass(frozen=True, slots=True)
class WholeLanes:
    """All lanes; ``alignment`` and ``lanes`` are None where all shards have one tokenizer."""

    plan: BraidPlan
    rows: tuple[WholeRows, ...]
    alignment: Alignment | None = None
    lanes: Lanes | None = None

    def of_shard(self, shard: int) -> WholeRows:
        """What a shard runs."""
        return self.rows[self.plan.lane_of[shard]]

    def in_anchors_vocabulary(
        self, logits_RU: Sequence[Tensor], shards: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Log-probabilities over the anchor's vocabulary, (R, V), of these shards, the anchor among them; None: of
        all. Differentiable."""
        shards = range(len(self.plan.shards)) if shards is None else shards
        of_lane0 = [
            s.vocab_size for s, lane in zip(self.plan.shards, self.plan.lane_of, strict=True) if lane == 0
        ]
        vocab_size = min(of_lane0)
        own = [
            log_probabilities(logits[:, :vocab_size] if self.plan.lane_of[shard] == 0 else logits)
            for logits, shard in zip(logits_RU, shards, strict=True)
        ]
        if self.lanes is None:
            return own
        anchor_RV = own[shards.index(self.plan.anchor)]
        projected = []
        for shard, log_probs in zip(shards, own, strict=True):
            vocabulary = self.lanes.vocabulary(shard)
            pending = self.of_shard(shard).pending
            projected.append(
                log_probs if vocabulary is None else vocabulary.project(log_probs, anchor_RV, pending)
            )
        return projected


def whole_lanes(
    backends: Sequence[Reader],
    plan: BraidPlan,
    token_ids_T: Tensor,
    lengths: Sequence[int],
    logit_rows: Sequence[int],
    *,
    on_cut: OnCut | None = None,
) -> WholeLanes:
    """The rows of all lanes for the anchor's token ids of packed whole sequences.

    ``on_cut``: with it, a sequence that has more tokens in some other lane than its shards can hold becomes several,
    one behind the other, and it is told the sequence's length. Raises: ContextLengthError where that doesn't help.
    """
    if plan.num_lanes == 1:
        return WholeLanes(plan, (WholeRows(token_ids_T, list(lengths), logit_rows),))
    lanes = lanes_of(backends, plan)
    weaves = [
        weave
        for part_ids in torch.split(token_ids_T, list(lengths))
        for weave in _weaves(lanes, part_ids.tolist(), on_cut)
    ]
    lengths = [len(weave) for weave in weaves]
    anchor = WholeRows(token_ids_T, lengths, logit_rows)
    ends = list(accumulate(lengths))
    wanted: list[list[int]] = [[] for _ in lengths]
    order: list[tuple[int, int]] = []  # of each logit row: its sequence, and which of its rows
    for row in logit_rows:
        sequence = bisect_right(ends, row)
        order.append((sequence, len(wanted[sequence])))
        wanted[sequence].append(row - ends[sequence] + lengths[sequence])
    parts = [WovenRows(str(index), weave, 0, len(weave), wanted[index]) for index, weave in enumerate(weaves)]
    begins = [0, *accumulate(map(len, wanted))]
    places = [begins[sequence] + row for sequence, row in order]
    rows = [anchor]
    for lane in range(1, plan.num_lanes):
        packed = pack_lane(lane, parts)
        rows.append(
            WholeRows(
                packed.token_ids,
                [segment.num_rows for segment in packed.segments],
                packed.logit_rows,
                torch.tensor([packed.reads[place] for place in places], dtype=torch.int64),
                tuple(packed.pending[place] for place in places),
            )
        )
    spans = [(0, length) for length in lengths]
    alignment = align([part.weave for part in parts], spans, plan.lane_of)
    return WholeLanes(plan, tuple(rows), alignment, lanes)


def _weaves(lanes: Lanes, token_ids: list[int], on_cut: OnCut | None) -> Iterator[Weave]:
    """One sequence, or its parts."""
    woven = _woven(lanes, token_ids)
    if woven.is_full and on_cut is not None:
        on_cut(len(token_ids))
        while woven.is_full:
            # What is settled of a text depends on nothing behind it, so a part fits by itself.
            fitting, limit = min(
                (woven.weave.anchor_tokens_within(lane, limit), limit)
                for lane, limit in enumerate(woven.limits)
                if lane > 0
            )
            if not fitting:
                raise ContextLengthError(
                    f"text: one token of the anchor, id {token_ids[0]}, takes more tokens of another shard's "
                    f"tokenizer than its context, {limit}"
                )
            yield _woven(lanes, token_ids[:fitting]).weave
            token_ids = token_ids[fitting:]
            woven = _woven(lanes, token_ids)
    yield woven.weave


def _woven(lanes: Lanes, token_ids: Sequence[int]) -> WovenText:
    woven = lanes.weave(token_ids)
    if woven is None:
        raise RuntimeError("a plan of several lanes without tokenizers")
    return woven


def lanes_of(backends: Sequence[Reader], plan: BraidPlan) -> Lanes:
    """The tokenizers of these shards; made once."""
    cards = [backend.card for backend in backends]
    limits = tuple((card.context_length, tuple(card.eos_token_ids)) for card in cards)
    key = (plan.shards, plan.anchor, plan.readout.kind, limits)
    with _lanes_lock:
        lanes = _lanes_of_plans.get(key)
        if lanes is None:
            lanes = _lanes_of_plans[key] = Lanes(plan, cards, lambda shard: backends[shard].tokenizer_json())
            while len(_lanes_of_plans) > _KEPT_LANES:
                _lanes_of_plans.popitem(last=False)
        return lanes
