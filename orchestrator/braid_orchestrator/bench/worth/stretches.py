"""Mixing models with different tokenizers by whole stretches of text, each model on tokens of its own.

A stretch ends where a token of every model ends. What a model gives it is the product of what it gives its own tokens
in it; so nothing of any model is lost on its way to another's tokens, as it is token by token. In return no token can
be generated like this before every model has come to the stretch's end.

Shapes: N tokens of a lane, C stretches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_orchestrator.evaluation.mixes import posterior_log_weights
from braid_orchestrator.evaluation.texts import LaneText

_SAME_PLACE = 0.25  # of a byte


def mixed_by_stretches(lanes: Sequence[LaneText], logprobs: Sequence[Tensor], forgetting: float) -> Tensor:
    """The posterior mix, as an evaluation's, with a stretch in a token's place.

    Args:
        lanes: the same text as each model reads it, the anchor's first.
        logprobs: natural, (N,) float64 per lane: what each model gives its own tokens.

    Returns: (N,) of the anchor's tokens, a stretch's as a whole at its last one. What comes before every model has a
        token to go on from, and after the last stretch, is the anchor's.
    """
    mixed_N = torch.zeros_like(logprobs[0])
    for document in range(lanes[0].corpus.num_documents):
        parts = [_Part.of(lane, one_N, document) for lane, one_N in zip(lanes, logprobs, strict=True)]
        begin, end = lanes[0].corpus.bounds[document : document + 2].tolist()
        mixed_N[begin:end] = _mix_document(parts, forgetting)
    return mixed_N


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A document's tokens in one lane: which count, where they end, and what a model gives them."""

    counts_N: Tensor  # noqa: N815 - shape letters
    ends_N: Tensor  # noqa: N815 - shape letters
    logprobs_N: Tensor  # noqa: N815 - shape letters

    @classmethod
    def of(cls, lane: LaneText, logprobs_N: Tensor, document: int) -> _Part:
        begin, end = lane.corpus.bounds[document : document + 2].tolist()
        counts_N = lane.counts_N[begin:end]
        return cls(counts_N, lane.ends_N[begin:end], torch.where(counts_N, logprobs_N[begin:end], 0.0))

    def has_end_at(self, ends: Tensor) -> Tensor:
        """At each of these places, whether a token that counts ends there."""
        own = self.ends_N[self.counts_N]
        if not own.numel():
            return torch.zeros_like(ends, dtype=torch.bool)
        nearest = torch.searchsorted(own, ends - _SAME_PLACE).clamp(max=own.numel() - 1)
        return (own[nearest] - ends).abs() <= _SAME_PLACE

    def by_stretch(self, ends_C: Tensor) -> Tensor:
        """(C + 1,): sums over each stretch, and over what comes after the last."""
        stretch_N = torch.searchsorted(ends_C, self.ends_N - _SAME_PLACE)
        return ends_C.new_zeros(ends_C.numel() + 1).index_add(0, stretch_N, self.logprobs_N)


def _mix_document(parts: Sequence[_Part], forgetting: float) -> Tensor:
    anchor = parts[0]
    is_end_N = anchor.counts_N.clone()
    for part in parts[1:]:
        is_end_N &= part.has_end_at(anchor.ends_N)
    # Of tokens without width, which end where the one before does, the last has the stretch.
    is_end_N[:-1] &= ~(is_end_N[1:] & (anchor.ends_N.diff() <= _SAME_PLACE))
    ends_C = anchor.ends_N[is_end_N]
    own_CS = torch.stack([part.by_stretch(ends_C) for part in parts], dim=1)
    own_CS[0] = own_CS[0, :1]
    mixed_C = (posterior_log_weights(own_CS, [own_CS.shape[0]], forgetting) + own_CS).logsumexp(-1)
    is_behind_N = anchor.ends_N > ends_C[-1] + _SAME_PLACE if ends_C.numel() else anchor.counts_N
    mixed_N = torch.where(is_behind_N, anchor.logprobs_N, 0.0)
    mixed_N[is_end_N] = mixed_C[:-1]
    return mixed_N
