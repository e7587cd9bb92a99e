"""Texts cut into windows, run through everybody, and summed up by units of text. Knows no intervals and no files.

The anchor's tokens are cut into windows that go over no document's end, each run from nothing before it. Shards with
another tokenizer also read the same documents in windows of as many tokens of their own.

Shapes: T packed rows, U units of a text, N tokens of a corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from braid_orchestrator.evaluation.scoring import Lineup, Predictor, Scores, score_alone, score_windows
from braid_orchestrator.evaluation.tally import Tally, UnitSums
from braid_orchestrator.evaluation.texts import EvaluationText, LaneText
from braid_orchestrator.training.data.windows import cut_windows
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.errors import ContextLengthError, FrameError, InvalidRequestError

UnitKind = Literal["window", "document"]
UNIT_KINDS: tuple[UnitKind, ...] = ("window", "document")
# How many windows are done, and of how many.
OnWindows = Callable[[int, int], None]
# Scores of these ids (T,), windows of these lengths one after the other, and of these targets (T,) behind them.
Score = Callable[[Tensor, Sequence[int], Tensor], Mapping[Predictor, Scores]]

MAX_ROWS = 2048
MAX_LOGIT_BYTES = 48 * 2**20
# Windows of one document are alike; with as many documents, these are drawn instead.
_ENOUGH_DOCUMENTS = 30


@dataclass(frozen=True, slots=True)
class ShardLimit:
    """What a shard may give at once: states and logits of ``held_bytes`` or of ``turn_rows`` rows, whichever is more,
    but one window in any case; and no more than ``message_bytes`` where they travel."""

    held_bytes: int = MAX_LOGIT_BYTES
    turn_rows: int = 0
    message_bytes: int | None = MAX_LOGIT_BYTES

    def rows(self, row_bytes: int) -> int:
        """How many rows of several windows that are."""
        held = max(self.held_bytes // row_bytes, self.turn_rows)
        return held if self.message_bytes is None else min(held, self.message_bytes // row_bytes)

    def takes_window(self, row_bytes: int, window: int) -> bool:
        """Whether one window can be run by itself."""
        return self.message_bytes is None or window * row_bytes <= self.message_bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """``window`` in tokens. At most ``max_rows`` are run at once, and no more than each shard may give by its name in
    ``limits``, or by the usual one. ``unit`` is what is drawn for intervals; None: documents where there are many,
    else windows."""

    window: int = 128
    max_rows: int = MAX_ROWS
    limits: Mapping[str, ShardLimit] = field(default_factory=dict)
    unit: UnitKind | None = None

    def __post_init__(self) -> None:
        if self.unit not in (None, *UNIT_KINDS):
            raise InvalidRequestError(f"unit: got {self.unit!r}, expected one of {', '.join(UNIT_KINDS)}")

    def unit_of(self, text: EvaluationText) -> UnitKind:
        """What is drawn of a text."""
        if self.unit is not None:
            return self.unit
        return "document" if text.num_documents >= _ENOUGH_DOCUMENTS else "window"


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredText:
    """A text with everybody's sums, in the order of the lineup."""

    name: str
    unit: UnitKind
    num_documents: int
    sums: Mapping[Predictor, UnitSums]

    @property
    def num_units(self) -> int:
        """U, the same for all."""
        return next(iter(self.sums.values())).bits_U.numel()


def measure_text(
    lineup: Lineup, text: EvaluationText, cut: Cut, on_windows: OnWindows | None = None
) -> MeasuredText:
    """Run a text through everybody. Shards with another tokenizer are scored on tokens of their own, the mixes of
    all on the anchor's.

    Raises: ContextLengthError for a window that a shard can't hold, FrameError for one that no message can;
        BraidError of every kind.
    """
    anchor = text.lanes[0]
    unit = cut.unit_of(text)
    plan = lineup.plan
    readings = [_Windows(anchor, cut.window)]
    readings += [_Windows(text.lanes[plan.lane_of[index]], cut.window) for index in lineup.foreign]
    ends_U = _unit_ends(anchor, readings[0], unit)
    done, total = 0, sum(len(windows) for windows in readings)
    tallies: dict[Predictor, Tally] = {}

    def note(scored: Mapping[Predictor, Scores], windows: _Windows, places_T: Tensor) -> None:
        for who, scores in scored.items():
            tally = tallies.setdefault(who, Tally(windows.lane, ends_U))
            tally.add(scores, places_T)

    def advance(num_windows: int) -> None:
        nonlocal done
        done += num_windows
        if on_windows is not None:
            on_windows(done, total)

    for batch in readings[0].batches(rows_at_once(lineup.shards, cut)):
        note(score_windows(lineup, batch.ids_T, batch.lengths, batch.targets_T), readings[0], batch.places_T)
        advance(len(batch.lengths))
    for index, windows in zip(lineup.foreign, readings[1:], strict=True):
        shard = lineup.shards[index]
        for batch in windows.batches(rows_at_once([shard], cut)):
            own = score_alone(shard, batch.ids_T, batch.lengths, batch.targets_T, accuracy=lineup.accuracy)
            note({lineup.of_shard(index): own}, windows, batch.places_T)
            advance(len(batch.lengths))
    sums = {who: tallies[who].sums() for who in lineup.predictors}
    return MeasuredText(text.name, unit, text.num_documents, sums)


def measure_shard(shard: TrainingShard, lane: LaneText, cut: Cut, max_windows: int | None = None) -> UnitSums:
    """One shard by itself, on a text as its own tokenizer reads it, or on its first windows. Raises: as
    `measure_text`."""
    who = Predictor("shard", shard.name)

    def score(ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> dict[Predictor, Scores]:
        return {who: score_alone(shard, ids_T, lengths, targets_T, accuracy=False)}

    cut = replace(cut, max_rows=rows_at_once([shard], cut))
    return measure_scores(score, lane, cut, max_windows)[who]


def measure_scores(
    score: Score,
    lane: LaneText,
    cut: Cut,
    max_windows: int | None = None,
    *,
    units_of: LaneText | None = None,
    unit_window: int | None = None,
) -> dict[Predictor, UnitSums]:
    """Anything that scores tokens, on a text as their tokenizer reads it, by windows. Knows no limits but
    ``cut.max_rows``.

    Args:
        units_of: the same text as another tokenizer reads it, by whose windows sums are made; None: by its own.
        unit_window: how many of those tokens are in its windows; None: ``cut.window``.

    Raises: what ``score`` raises.
    """
    windows = _Windows(lane, cut.window, max_windows)
    of_units = windows if units_of is None else _Windows(units_of, unit_window or cut.window)
    ends_U = _unit_ends(of_units.lane, of_units, "window")
    tallies: dict[Predictor, Tally] = {}
    for batch in windows.batches(cut.max_rows):
        for who, scores in score(batch.ids_T, batch.lengths, batch.targets_T).items():
            tallies.setdefault(who, Tally(lane, ends_U)).add(scores, batch.places_T)
    return {who: tally.sums() for who, tally in tallies.items()}


def token_logprobs(score: Score, lane: LaneText, cut: Cut) -> dict[Predictor, Tensor]:
    """As `measure_scores`, each token by itself: (N,) in float64, natural, 0 where none was predicted."""
    found: dict[Predictor, Tensor] = {}
    for batch in _Windows(lane, cut.window).batches(cut.max_rows):
        for who, scores in score(batch.ids_T, batch.lengths, batch.targets_T).items():
            logprobs_N = found.setdefault(who, torch.zeros(lane.counts_N.numel(), dtype=torch.float64))
            logprobs_N[batch.places_T] = scores.logprobs_T.double()
    return found


def sum_by_windows(logprobs_N: Tensor, lane: LaneText, window: int) -> UnitSums:
    """Of tokens by themselves."""
    windows = _Windows(lane, window)
    tally = Tally(lane, _unit_ends(lane, windows, "window"))
    tally.add(Scores(logprobs_N), torch.arange(logprobs_N.numel()))
    return tally.sums()


def check_window(shards: Sequence[TrainingShard], window: int) -> None:
    """Raises: ContextLengthError, naming a shard that can't hold a window."""
    short = min(shards, key=lambda shard: shard.card.context_length)
    if short.card.context_length < window:
        raise ContextLengthError(
            f"window: got {window} tokens, expected at most {short.card.context_length}, the context of shard "
            f"{short.name!r}"
        )


def rows_at_once(shards: Sequence[TrainingShard], cut: Cut) -> int:
    """So many of several windows may be run at once; where that's less than one window, each by itself. Raises:
    ContextLengthError; FrameError where not even one window's results fit."""
    check_window(shards, cut.window)
    rows = cut.max_rows
    for shard in shards:
        limit, of_one = cut.limits.get(shard.name, ShardLimit()), row_bytes(shard)
        rows = min(rows, limit.rows(of_one))
        if not limit.takes_window(of_one, cut.window):
            raise FrameError(
                f"window: got {cut.window} tokens, whose logits in shard {shard.name!r} take "
                f"{cut.window * of_one} bytes, expected at most {limit.message_bytes}; take smaller windows, or let "
                "the shard have a larger max_message_bytes"
            )
    return rows


def row_bytes(shard: TrainingShard) -> int:
    """Of one row's state and logits."""
    card = shard.card
    itemsize: int = getattr(torch, card.dtype).itemsize
    return (card.vocab_size + card.width) * itemsize


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Rows of several windows, the tokens behind them, and the places of these in the corpus."""

    ids_T: Tensor  # noqa: N815 - shape letters
    lengths: list[int]
    targets_T: Tensor  # noqa: N815 - shape letters
    places_T: Tensor  # noqa: N815 - shape letters


class _Windows:
    """A lane's text in windows that have tokens which count."""

    def __init__(self, lane: LaneText, window: int, max_windows: int | None = None) -> None:
        windows = cut_windows(lane.corpus, window, "whole")
        begins, lengths = windows.places(windows.in_order())
        counted_N = lane.counts_N.cumsum(0)
        has_text = counted_N[begins + lengths] > counted_N[begins]
        self.lane = lane
        self.begins, self.lengths = begins[has_text][:max_windows], lengths[has_text][:max_windows]

    def __len__(self) -> int:
        return self.begins.numel()

    def batches(self, max_rows: int) -> Iterator[_Batch]:
        """As many windows at once as have at most so many rows, or one."""
        first, num_rows = 0, 0
        for index, length in enumerate([*self.lengths.tolist(), max_rows + 1]):
            if num_rows and num_rows + length > max_rows:
                yield self._batch(first, index)
                first, num_rows = index, 0
            num_rows += length

    def _batch(self, first: int, end: int) -> _Batch:
        lengths = self.lengths[first:end]
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        rows_T = torch.arange(int(lengths.sum())) - starts + self.begins[first:end].repeat_interleave(lengths)
        ids_N = self.lane.corpus.token_ids_N
        return _Batch(ids_N[rows_T].long(), lengths.tolist(), ids_N[rows_T + 1].long(), rows_T + 1)


def _unit_ends(lane: LaneText, windows: _Windows, unit: UnitKind) -> Tensor:
    """Where the units end on the text's axis of bytes, ascending."""
    places = windows.begins + windows.lengths if unit == "window" else lane.corpus.bounds[1:] - 1
    return lane.ends_N[places].contiguous()
