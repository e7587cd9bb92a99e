"""One vocabulary's next-token probabilities as another's.

A shard that tokenizes differently says how the text goes on in pieces of its own. Of what it says, the anchor's
tokens keep what is about bytes: each of the shard's tokens hands its probability to the anchor's tokens that
agree with it (one of the two begins with the other), in the proportions in which the anchor itself expects them.
So the shard decides between what its own pieces can tell apart, and the anchor decides the rest:

    P'(w) = P(w) · Σ_{v ~ w} Q(v) / Z(v),   Z(v) = Σ_{w ~ v} P(w)

with P the anchor's distribution, Q the shard's. Where the text has gone on behind the shard's last settled token,
Q is first conditioned on that: its tokens must begin with the pending text, and what is left of them counts.
Probability of tokens that say nothing new (they end within the pending text, or have no text) falls to P.

Letters: R rows, V the anchor's vocabulary, U the shard's vocabulary, E pairs that agree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# How many pending texts' pairs are kept at hand.
_KEPT_PENDINGS = 512
_TINY = 1e-30
# Beyond so many numbers (rows times pairs), pairs are summed by a sparse product instead of one by one.
_MAX_NUMBERS = 2**22


@dataclass(frozen=True, slots=True)
class _Pairs:
    """``shard_E`` and ``anchor_E`` index pairs that agree; ``silent_U`` are consistent tokens that say nothing."""

    shard_E: Tensor  # noqa: N815 - shape letters
    anchor_E: Tensor  # noqa: N815 - shape letters
    silent_U: Tensor  # noqa: N815 - shape letters

    def sum_by_shard(self, anchor_RV: Tensor, num_tokens: int) -> Tensor:
        """(R, U): for each of the shard's tokens the sum over the anchor's tokens that agree with it."""
        return _sum_pairs(anchor_RV, self.anchor_E, self.shard_E, num_tokens)

    def sum_by_anchor(self, shard_RU: Tensor, num_tokens: int) -> Tensor:
        """(R, V): for each of the anchor's tokens the sum over the shard's tokens that agree with it."""
        return _sum_pairs(shard_RU, self.shard_E, self.anchor_E, num_tokens)


class VocabularyMap:
    """From a shard's vocabulary to the anchor's. ``anchor`` and ``shard`` are the bytes of each token id."""

    def __init__(
        self, anchor: Sequence[bytes], shard: Sequence[bytes], same_ids: Sequence[tuple[int, int]] = ()
    ) -> None:
        """``same_ids``: (shard's, anchor's) ids of textless tokens that mean the same, such as end of text."""
        self._anchor = sorted((piece, token_id) for token_id, piece in enumerate(anchor) if piece)
        self._anchor_pieces = [piece for piece, _ in self._anchor]
        self._anchor_ids = [token_id for _, token_id in self._anchor]
        self._anchor_longest = max(map(len, self._anchor_pieces), default=0)
        self._shard = sorted((piece, token_id) for token_id, piece in enumerate(shard) if piece)
        self._shard_pieces = [piece for piece, _ in self._shard]
        self._textless = [token_id for token_id, piece in enumerate(shard) if not piece]
        self._same_ids = tuple(same_ids)
        self._kept: OrderedDict[bytes, _Pairs] = OrderedDict()

    def project(
        self, shard_log_probs_RU: Tensor, anchor_log_probs_RV: Tensor, pending: Sequence[bytes | None]
    ) -> Tensor:
        """The shard's log-probabilities over the anchor's vocabulary, (R, V). Differentiable.

        Args:
            pending: text behind the shard's last settled token, per row; None where nothing can be said.
        """
        rows_of: dict[bytes, list[int]] = {}
        for row, text in enumerate(pending):
            if text is not None:
                rows_of.setdefault(text, []).append(row)
        projected_RV = anchor_log_probs_RV
        for text, rows in rows_of.items():
            rows_R = torch.tensor(rows, device=anchor_log_probs_RV.device)
            part_RV = self._project(
                shard_log_probs_RU.index_select(0, rows_R),
                anchor_log_probs_RV.index_select(0, rows_R),
                self._pairs(text),
            )
            projected_RV = projected_RV.index_copy(0, rows_R, part_RV)
        return projected_RV

    def _project(self, shard_RU: Tensor, anchor_RV: Tensor, pairs: _Pairs) -> Tensor:
        probs_RV, shard_probs_RU = anchor_RV.exp(), shard_RU.exp()
        num_rows = probs_RV.shape[0]
        total_RU = pairs.sum_by_shard(probs_RV, shard_RU.shape[1])
        told_RU = total_RU > _TINY
        ratio_RU = torch.where(told_RU, shard_probs_RU / total_RU.clamp_min(_TINY), 0.0)
        given_RV = probs_RV * pairs.sum_by_anchor(ratio_RU, probs_RV.shape[1])
        told_R1 = torch.where(told_RU, shard_probs_RU, 0.0).sum(-1, keepdim=True)
        silent_R1 = shard_probs_RU.index_select(1, pairs.silent_U).sum(-1, keepdim=True)
        consistent_R1 = told_R1 + silent_R1
        # What nothing agrees with says nothing either.
        usable_R1 = consistent_R1 > _TINY
        mixed_RV = (given_RV + silent_R1 * probs_RV) / consistent_R1.clamp_min(_TINY)
        mixed_RV = torch.where(usable_R1.expand(num_rows, probs_RV.shape[1]), mixed_RV, probs_RV)
        return mixed_RV.clamp_min(_TINY).log()

    def _pairs(self, pending: bytes) -> _Pairs:
        pairs = self._kept.get(pending)
        if pairs is None:
            pairs = self._kept[pending] = self._find_pairs(pending)
            if len(self._kept) > _KEPT_PENDINGS:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(pending)
        return pairs

    def _find_pairs(self, pending: bytes) -> _Pairs:
        shard_ids: list[int] = []
        anchor_ids: list[int] = []
        for at in range(*_range_of_prefix(self._shard_pieces, pending)):
            piece, token_id = self._shard[at]
            agreeing = self._agreeing(piece[len(pending) :]) if len(piece) > len(pending) else []
            anchor_ids.extend(agreeing)
            shard_ids.extend([token_id] * len(agreeing))
        silent = [
            token_id for length in range(1, len(pending) + 1) for token_id in self._ids_of(pending[:length])
        ]
        if not pending:
            shard_ids.extend(own for own, _ in self._same_ids)
            anchor_ids.extend(anchors for _, anchors in self._same_ids)
            same = {own for own, _ in self._same_ids}
            silent = [token_id for token_id in self._textless if token_id not in same]
        return _Pairs(*(torch.tensor(ids, dtype=torch.int64) for ids in (shard_ids, anchor_ids, silent)))

    def _agreeing(self, rest: bytes) -> list[int]:
        """The anchor's tokens that begin with ``rest``, or with which ``rest`` begins."""
        begin, end = _range_of_prefix(self._anchor_pieces, rest)
        agreeing = self._anchor_ids[begin:end]
        for length in range(1, min(len(rest), self._anchor_longest + 1)):
            begin, end = _range_of_prefix(self._anchor_pieces, rest[:length])
            while begin < end and self._anchor_pieces[begin] == rest[:length]:
                agreeing.append(self._anchor_ids[begin])
                begin += 1
        return agreeing

    def _ids_of(self, piece: bytes) -> list[int]:
        begin = bisect_left(self._shard_pieces, piece)
        found = []
        while begin < len(self._shard) and self._shard_pieces[begin] == piece:
            found.append(self._shard[begin][1])
            begin += 1
        return found


def _sum_pairs(values_RX: Tensor, from_E: Tensor, to_E: Tensor, num_sums: int) -> Tensor:
    """(R, num_sums): each pair adds the value at its one side to the sum at its other."""
    num_rows = values_RX.shape[0]
    if num_rows * from_E.shape[0] <= _MAX_NUMBERS:
        sums = values_RX.new_zeros(num_rows, num_sums)
        return sums.index_add(1, to_E, values_RX.index_select(1, from_E))
    ones = values_RX.new_ones(from_E.shape[0])
    matrix = torch.sparse_coo_tensor(
        torch.stack([to_E, from_E]), ones, (num_sums, values_RX.shape[1]), check_invariants=False
    )
    sums_XR: Tensor = torch.sparse.mm(matrix, values_RX.mT)
    return sums_XR.mT


def _range_of_prefix(pieces: Sequence[bytes], prefix: bytes) -> tuple[int, int]:
    """Where the sorted pieces that begin with a prefix stand."""
    begin = bisect_left(pieces, prefix)
    # The first piece that comes after all that begin with it: the prefix, counted up by one.
    after = prefix.rstrip(b"\xff")
    end = bisect_left(pieces, after[:-1] + bytes([after[-1] + 1])) if after else len(pieces)
    return begin, end
