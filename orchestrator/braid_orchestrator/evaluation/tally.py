"""One predictor's scores, added up by units of text. Runs nothing.

Shapes: T packed rows, U units of a text, N tokens of a corpus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_orchestrator.evaluation.scoring import Scores
from braid_orchestrator.evaluation.texts import LaneText


@dataclass(frozen=True, slots=True, eq=False)
class UnitSums:
    """What a predictor gave in each unit, (U,) in float64: bits for all of its tokens that count, the bytes and the
    number of these, and how many were the likeliest (None: not asked for)."""

    bits_U: Tensor  # noqa: N815 - shape letters
    bytes_U: Tensor  # noqa: N815 - shape letters
    tokens_U: Tensor  # noqa: N815 - shape letters
    hits_U: Tensor | None = None  # noqa: N815 - shape letters

    @property
    def bits_per_byte(self) -> float:
        """Over all units."""
        return float(self.bits_U.sum() / self.bytes_U.sum())

    @property
    def accuracy(self) -> float | None:
        """Over all units."""
        return None if self.hits_U is None else float(self.hits_U.sum() / self.tokens_U.sum())


class Tally:
    """``ends_U``: where the units end on the text's axis of bytes, ascending."""

    def __init__(self, lane: LaneText, ends_U: Tensor) -> None:
        self._lane = lane
        # A token belongs to the unit in which it ends; what is scaled may be off by a fraction of a byte.
        self._unit_N = torch.searchsorted(ends_U, lane.ends_N - 0.25).clamp(max=ends_U.numel() - 1)
        self._bits_U, self._hits_U, self._bytes_U, self._tokens_U = (
            torch.zeros(ends_U.numel(), dtype=torch.float64) for _ in range(4)
        )
        self._has_hits = False

    def add(self, scores: Scores, places_T: Tensor) -> None:
        """Scores of the tokens at these places."""
        counts_T = self._lane.counts_N[places_T]
        places = places_T[counts_T]
        units = self._unit_N[places]
        bits = -scores.logprobs_T.cpu().double()[counts_T] / math.log(2)
        self._bits_U.index_add_(0, units, bits)
        self._bytes_U.index_add_(0, units, self._lane.bytes_N[places])
        self._tokens_U.index_add_(0, units, torch.ones_like(bits))
        if scores.hits_T is not None:
            self._has_hits = True
            self._hits_U.index_add_(0, units, scores.hits_T[counts_T].double())

    def sums(self) -> UnitSums:
        """All that was added."""
        return UnitSums(self._bits_U, self._bytes_U, self._tokens_U, self._hits_U if self._has_hits else None)
