"""What an evaluation found: figures with intervals, each also against the best shard and against the braid.

Made of sums by units; knows neither models nor how it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from braid_fusion.strict_json import dump_json
from braid_orchestrator.evaluation.intervals import Estimate, Resampling
from braid_orchestrator.evaluation.measuring import MeasuredText
from braid_orchestrator.evaluation.scoring import BRAID, Kind, Predictor
from braid_orchestrator.evaluation.tally import UnitSums
from braid_orchestrator.evaluation.texts import ALL_TEXTS


@dataclass(frozen=True, slots=True)
class Difference:
    """Of bits per byte to someone else's on the same units: below zero is better. ``relative`` is its share of
    theirs."""

    bits_per_byte: Estimate
    relative: Estimate


@dataclass(frozen=True, slots=True)
class Figures:
    """One predictor on one text. The differences are None to itself."""

    name: str
    kind: Kind
    bits_per_byte: Estimate
    accuracy: Estimate | None
    num_tokens: int
    to_best_shard: Difference | None
    to_braid: Difference | None


@dataclass(frozen=True, slots=True)
class TextReport:
    """A text's rows. ``best_shard`` is the one with the fewest bits per byte on this very text."""

    name: str
    num_documents: int
    num_units: int
    unit: str
    num_bytes: int
    best_shard: str
    rows: tuple[Figures, ...]

    def row(self, name: str, kind: Kind | None = None) -> Figures:
        """The figures of one predictor. Raises: KeyError."""
        for row in self.rows:
            if row.name == name and kind in (None, row.kind):
                return row
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Report:
    """All texts, and all of them together where there are several. ``settings`` say how it was done, ``fit`` how
    learned baselines were."""

    texts: tuple[TextReport, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for figures that are not finite."""
        plain: dict[str, Any] = json.loads(dump_json(asdict(self)))
        return plain


def make_report(
    measured: Sequence[MeasuredText],
    resampling: Resampling,
    settings: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
) -> Report:
    """The report of texts that were measured with one lineup."""
    samples = [_Sample.of(text, resampling, stratum) for stratum, text in enumerate(measured)]
    if len(samples) > 1:
        samples.append(_Sample.together(measured, samples))
    return Report(
        tuple(_text_report(sample, resampling) for sample in samples),
        dict(settings or {}),
        None if fit is None else dict(fit),
    )


# Columns of sums.
_BITS, _BYTES, _TOKENS, _HITS = range(4)
_ENOUGH_TELLING = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Sums over all units of a text, (4,) for each predictor, and over resamples of them, (B, 4); None: one unit.

    Where units are few and some of them empty, a resample may hold nothing of somebody's. It tells nothing of anybody
    then; where that is so of most, there are no intervals."""

    name: str
    unit: str
    num_documents: int
    num_units: int
    has_hits: bool
    sums: Mapping[Predictor, Tensor]
    resampled: Mapping[Predictor, Tensor] | None

    @classmethod
    def of(cls, text: MeasuredText, resampling: Resampling, stratum: int) -> _Sample:
        """One text."""
        columns = {who: _columns(sums) for who, sums in text.sums.items()}
        # A unit without a token that counts tells nothing.
        told = torch.stack([values_U4[:, _TOKENS] for values_U4 in columns.values()]).any(0)
        resampled = None
        if int(told.sum()) > 1:
            side_by_side = torch.cat([values_U4[told] for values_U4 in columns.values()], dim=1)
            parts = torch.split(resampling.sums(side_by_side, stratum), 4, dim=1)
            resampled = dict(zip(columns, parts, strict=True))
        return cls(
            text.name,
            text.unit,
            text.num_documents,
            int(told.sum()),
            all(sums.hits_U is not None for sums in text.sums.values()),
            {who: values_U4.sum(0) for who, values_U4 in columns.items()},
            resampled,
        )

    @classmethod
    def together(cls, texts: Sequence[MeasuredText], samples: Sequence[_Sample]) -> _Sample:
        """Several texts as one: each is drawn from by itself. Texts of one unit stay as they are."""
        resampled = None
        if any(sample.resampled is not None for sample in samples):
            resampled = {
                who: sum(
                    (
                        sample.sums[who] if sample.resampled is None else sample.resampled[who]
                        for sample in samples
                    ),
                    torch.zeros(4, dtype=torch.float64),
                )
                for who in samples[0].sums
            }
        units = dict.fromkeys(text.unit for text in texts)
        return cls(
            ALL_TEXTS,
            " and ".join(units),
            sum(sample.num_documents for sample in samples),
            sum(sample.num_units for sample in samples),
            all(sample.has_hits for sample in samples),
            {who: torch.stack([sample.sums[who] for sample in samples]).sum(0) for who in samples[0].sums},
            resampled,
        )

    def bits_per_byte(self, who: Predictor) -> tuple[float, Tensor | None]:
        """Of the text, and of each resample."""
        return self._ratio(who, _BITS, _BYTES)

    def accuracy(self, who: Predictor) -> tuple[float, Tensor | None]:
        """The same."""
        return self._ratio(who, _HITS, _TOKENS)

    def _ratio(self, who: Predictor, above: int, below: int) -> tuple[float, Tensor | None]:
        sums_4 = self.sums[who]
        drawn_B = None
        if self.resampled is not None and (telling_B := self._telling()) is not None:
            drawn_B4 = self.resampled[who][telling_B]
            drawn_B = drawn_B4[:, above] / drawn_B4[:, below]
        return float(sums_4[above] / sums_4[below]), drawn_B

    def _telling(self) -> Tensor | None:
        """(B,) which resamples hold something of everybody's; None: too few."""
        drawn_PB4 = torch.stack(list((self.resampled or {}).values()))
        telling_B = (drawn_PB4[..., _BYTES] > 0).all(0) & (drawn_PB4[..., _TOKENS] > 0).all(0)
        return telling_B if float(telling_B.double().mean()) > _ENOUGH_TELLING else None


def _columns(sums: UnitSums) -> Tensor:
    hits_U = torch.zeros_like(sums.bits_U) if sums.hits_U is None else sums.hits_U
    return torch.stack([sums.bits_U, sums.bytes_U, sums.tokens_U, hits_U], dim=1)


def _text_report(sample: _Sample, resampling: Resampling) -> TextReport:
    shards = [who for who in sample.sums if who.kind == "shard"]
    best = min(shards, key=lambda who: sample.bits_per_byte(who)[0])

    def difference(who: Predictor, other: Predictor) -> Difference | None:
        if who == other or other not in sample.sums:
            return None
        (own, own_B), (theirs, theirs_B) = sample.bits_per_byte(who), sample.bits_per_byte(other)
        if own_B is None or theirs_B is None:
            return Difference(Estimate(own - theirs), Estimate((own - theirs) / theirs))
        return Difference(
            resampling.estimate(own - theirs, own_B - theirs_B),
            resampling.estimate((own - theirs) / theirs, (own_B - theirs_B) / theirs_B),
        )

    rows = tuple(
        Figures(
            who.name,
            who.kind,
            resampling.estimate(*sample.bits_per_byte(who)),
            resampling.estimate(*sample.accuracy(who)) if sample.has_hits else None,
            int(sample.sums[who][_TOKENS]),
            difference(who, best),
            difference(who, BRAID),
        )
        for who in sample.sums
    )
    num_bytes = round(max(float(sums_4[_BYTES]) for sums_4 in sample.sums.values()))
    return TextReport(
        sample.name, sample.num_documents, sample.num_units, sample.unit, num_bytes, best.name, rows
    )
