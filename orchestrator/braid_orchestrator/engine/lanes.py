"""The shards' tokenizers, and a braided session's tokens in all of them.

Shards of one tokenizer share a lane and take the same ids; lane 0 is the anchor's. Knows text, not models.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from braid_fusion.alignment import SettlingTokenizer, VocabularyMap, Weave, token_pieces
from braid_fusion.plan import BraidPlan
from braid_orchestrator.engine.text import IncrementalDecoder, TextCodec
from braid_rpc.cards import ShardCard
from braid_services.fusion.translation import braid_errors


@dataclass(slots=True)
class WovenText:
    """One session's anchor tokens as text, and all other lanes' tokens that follow from it. ``limits`` are the
    tokens that each lane's shards can hold."""

    decoder: IncrementalDecoder
    weave: Weave
    limits: tuple[int, ...]

    def push(self, token_id: int) -> None:
        """The anchor's next token."""
        text = self.decoder.push(token_id)
        self.weave.push(text, within_character=self.decoder.is_within_character)

    def num_tokens(self, lane: int) -> int:
        """Settled tokens of a lane behind the anchor's."""
        return len(self.weave.lanes[lane - 1].token_ids)

    @property
    def is_full(self) -> bool:
        """A lane behind the anchor's has more tokens than its shards can hold."""
        return any(self.num_tokens(lane) > limit for lane, limit in enumerate(self.limits) if lane > 0)

    def fitting_rows(self, begin: int, num_rows: int, max_rows: int) -> tuple[int, int]:
        """Of the anchor's next ``num_rows`` from ``begin`` on, how many there can be with at most ``max_rows`` in any
        lane (one at least), and how many that makes in the largest."""
        end = self.weave.fitting(begin, begin + num_rows, max_rows)
        largest = max(self.weave.rows(lane, begin, end)[1] for lane in range(len(self.limits)))
        return end - begin, largest

    def copy(self) -> WovenText:
        """The same, to go on differently."""
        return WovenText(self.decoder.copy(), self.weave.copy(), self.limits)


class Lanes:
    """All lanes of one plan. Safe to use from several threads."""

    def __init__(self, plan: BraidPlan, cards: Many[ShardCard], tokenizer_json: Callable[[int], str]) -> None:
        """``tokenizer_json`` gives a shard's tokenizer, by its index in the plan.

        Raises: ConfigError for one that can't be read; UnsupportedModelError for a shard without any.
        """
        self.lane_of = plan.lane_of
        self._anchor = plan.anchor
        leaders = [plan.anchor, *(self.lane_of.index(lane) for lane in range(1, plan.num_lanes))]
        texts = [tokenizer_json(shard) for shard in leaders]
        self._codecs = [TextCodec(text) for text in texts]
        self.limits = tuple(
            min(card.context_length for card, of in zip(cards, self.lane_of, strict=True) if of == lane)
            for lane in range(plan.num_lanes)
        )
        """Tokens that all shards of a lane can hold."""
        with braid_errors():
            self._tokenizers = [SettlingTokenizer(text) for text in texts[1:]]
        self._vocabularies: dict[int, VocabularyMap] = {}
        if plan.readout.kind != "anchor" and plan.num_lanes > 1:
            pieces = [
                token_pieces(text, plan.shards[s].vocab_size) for text, s in zip(texts, leaders, strict=True)
            ]
            ends = [cards[shard].eos_token_ids[:1] for shard in leaders]
            for lane in range(1, plan.num_lanes):
                same = [(own, anchors) for own in ends[lane] for anchors in ends[0]]
                self._vocabularies[lane] = VocabularyMap(pieces[0], pieces[lane], same)

    @property
    def is_one(self) -> bool:
        """All shards have one tokenizer."""
        return not self._tokenizers

    @property
    def anchor(self) -> TextCodec:
        """The anchor's tokenizer."""
        return self._codecs[0]

    def codec(self, shard: int) -> TextCodec:
        """A shard's tokenizer."""
        return self._codecs[self.lane_of[shard]]

    def vocabulary(self, shard: int) -> VocabularyMap | None:
        """From a shard's vocabulary to the anchor's; None for shards of the anchor's lane."""
        return self._vocabularies.get(self.lane_of[shard])

    def weave(self, token_ids: Many[int]) -> WovenText | None:
        """The text of a session that begins with these tokens of the anchor; None where there is one lane."""
        if self.is_one:
            return None
        woven = WovenText(IncrementalDecoder(self.anchor, ()), Weave(self._tokenizers), self.limits)
        for token_id in token_ids:
            woven.push(token_id)
        return woven
