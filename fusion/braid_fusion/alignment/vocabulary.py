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

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# How many pairs are kept at hand, over all pending texts.
_KEPT_PAIRS = 2**22
_LEAST_PAIRS = 2**12  # what a pending text without any counts, so that their number is bounded too
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over pairs: ``targets_K`` get the sum of ``sources_E``, those of the first from ``begins_K[0]`` on."""

    sources_E: Tensor  # noqa: N815 - shape letters
    begins_K: Tensor  # noqa: N815 - shape letters
    targets_K: Tensor  # noqa: N815 - shape letters
    targets_E: Tensor  # noqa: N815 - shape letters

    @classmethod
    def over(cls, sources_E: Tensor, targets_E: Tensor) -> _Sums:
        """Of pairs in any order."""
        targets_E, order_E = targets_E.sort(stable=True)
        targets_K, counts_K = targets_E.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        return cls(sources_E[order_E], counts_K.cumsum(0) - counts_K, targets_K, targets_E)

    def of(self, values_RX: Tensor, num_sums: int) -> Tensor:
        """(R, num_sums): zero where there is nothing to sum."""
        num_rows, device = values_RX.shape[0], values_RX.device
        sources_E = self.sources_E.to(device)
        if num_rows == 1 or not sources_E.numel():
            sums_RX = values_RX.new_zeros(num_rows, num_sums)
            return sums_RX.index_add(1, self.targets_E.to(device), values_RX.index_select(1, sources_E))
        # Of several rows at once: a tenth of the time, and no (R, E) in memory.
        sums_KR = functional.embedding_bag(
            sources_E, values_RX.mT.contiguous(), self.begins_K.to(device), mode="sum"
        )
        sums_XR = values_RX.new_zeros(num_sums, num_rows)
        return sums_XR.index_copy(0, self.targets_K.to(device), sums_KR).mT


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The E pairs that agree, summed up by either side; ``silent_U`` are consistent tokens that say nothing."""

    by_shard: _Sums
    by_anchor: _Sums
    silent_U: Tensor  # noqa: N815 - shape letters
    num_pairs: int


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
        self._anchor_of: dict[bytes, list[int]] = {}
        for piece, token_id in self._anchor:
            self._anchor_of.setdefault(piece, []).append(token_id)
        self._shard = sorted((piece, token_id) for token_id, piece in enumerate(shard) if piece)
        self._shard_pieces = [piece for piece, _ in self._shard]
        self._textless = [token_id for token_id, piece in enumerate(shard) if not piece]
        self._same_ids = tuple(same_ids)
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, _Pairs] = OrderedDict()
        self._num_kept_pairs = 0
        self._pairs(b"")  # by far the most, and every session's first

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
        if not rows_of:
            return anchor_log_probs_RV
        # Rows are brought together and put back once for all texts: once for each would cost a copy of everything
        # per text, and in the backward pass two.
        device = anchor_log_probs_RV.device
        rows_R = torch.tensor([row for rows in rows_of.values() for row in rows], device=device)
        counts = [len(rows) for rows in rows_of.values()]
        parts = zip(
            rows_of,
            torch.split(shard_log_probs_RU.index_select(0, rows_R), counts),
            torch.split(anchor_log_probs_RV.index_select(0, rows_R), counts),
            strict=True,
        )
        projected_RV = torch.cat(
            [self._project(shard_RU, anchor_RV, self._pairs(text)) for text, shard_RU, anchor_RV in parts]
        )
        return anchor_log_probs_RV.index_copy(0, rows_R, projected_RV)

    def _project(self, shard_RU: Tensor, anchor_RV: Tensor, pairs: _Pairs) -> Tensor:
        probs_RV, shard_probs_RU = anchor_RV.exp(), shard_RU.exp()
        num_rows = probs_RV.shape[0]
        total_RU = pairs.by_shard.of(probs_RV, shard_RU.shape[1])
        told_RU = total_RU > _TINY
        ratio_RU = torch.where(told_RU, shard_probs_RU / total_RU.clamp_min(_TINY), 0.0)
        given_RV = probs_RV * pairs.by_anchor.of(ratio_RU, probs_RV.shape[1])
        told_R1 = torch.where(told_RU, shard_probs_RU, 0.0).sum(-1, keepdim=True)
        silent_R1 = shard_probs_RU.index_select(1, pairs.silent_U.to(shard_RU.device)).sum(-1, keepdim=True)
        consistent_R1 = told_R1 + silent_R1
        # What nothing agrees with says nothing either.
        usable_R1 = consistent_R1 > _TINY
        mixed_RV = (given_RV + silent_R1 * probs_RV) / consistent_R1.clamp_min(_TINY)
        mixed_RV = torch.where(usable_R1.expand(num_rows, probs_RV.shape[1]), mixed_RV, probs_RV)
        return mixed_RV.clamp_min(_TINY).log()

    def _pairs(self, pending: bytes) -> _Pairs:
        with self._lock:
            pairs = self._kept.get(pending)
            if pairs is None:
                pairs = self._kept[pending] = self._find_pairs(pending)
                self._num_kept_pairs += pairs.num_pairs
                while self._num_kept_pairs > _KEPT_PAIRS and len(self._kept) > 1:
                    self._num_kept_pairs -= self._kept.popitem(last=False)[1].num_pairs
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
        shard_E, anchor_E, silent_U = (
            torch.tensor(ids, dtype=torch.int64) for ids in (shard_ids, anchor_ids, silent)
        )
        num_pairs = max(len(shard_ids), _LEAST_PAIRS)
        return _Pairs(_Sums.over(anchor_E, shard_E), _Sums.over(shard_E, anchor_E), silent_U, num_pairs)

    def _agreeing(self, rest: bytes) -> list[int]:
        """The anchor's tokens that begin with ``rest``, or with which ``rest`` begins."""
        begin, end = _range_of_prefix(self._anchor_pieces, rest)
        agreeing = self._anchor_ids[begin:end]
        for length in range(1, min(len(rest), self._anchor_longest + 1)):
            agreeing.extend(self._anchor_of.get(rest[:length], ()))
        return agreeing

    def _ids_of(self, piece: bytes) -> list[int]:
        begin = bisect_left(self._shard_pieces, piece)
        found = []
        while begin < len(self._shard) and self._shard_pieces[begin] == piece:
            found.append(self._shard[begin][1])
            begin += 1
        return found


def _range_of_prefix(pieces: Sequence[bytes], prefix: bytes) -> tuple[int, int]:
    """Where the sorted pieces that begin with a prefix stand."""
    begin = bisect_left(pieces, prefix)
    # The first piece that comes after all that begin with it: the prefix, counted up by one.
    after = prefix.rstrip(b"\xff")
    end = bisect_left(pieces, after[:-1] + bytes([after[-1] + 1])) if after else len(pieces)
    return begin, end
