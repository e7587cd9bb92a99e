"""Turns what a user asked for into sequences, or refuses it: all checks that need the models' sizes and the
tokenizer, and none that need the state of the engine. Safe to use from several threads.
"""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Sequence as Many

from braid_fusion.plan import BraidPlan
from braid_orchestrator.config.values import LimitsConfig
from braid_orchestrator.engine.lanes import Lanes, WovenText
from braid_orchestrator.engine.requests import GenerateRequest, ScoreRequest, UseBraiding
from braid_orchestrator.engine.sessions import (
    BRAIDED,
    GeneratedSequence,
    Request,
    ScoredSequence,
    Sequence,
    Sink,
)
from braid_orchestrator.engine.step_shares import StepShare
from braid_orchestrator.engine.text import Encoded, TextCodec
from braid_rpc.cards import ShardCard
from braid_rpc.errors import ConflictError, ContextLengthError, InvalidRequestError, UnknownShardError

# Logits of scored texts travel whole: bound what one step brings.
_MAX_LOGIT_BYTES = 16 * 2**20


class Intake:
    """Knows the shards' names, vocabularies and context lengths."""

    def __init__(self, plan: BraidPlan, cards: Many[ShardCard], lanes: Lanes, limits: LimitsConfig) -> None:
        self._plan = plan
        self._cards = cards
        self._lanes = lanes
        self._limits = limits

    def context_length(self, route: int) -> int:
        """Tokens that every shard of the route can hold; where they have different tokenizers, those that have the
        anchor's, in its tokens."""
        return min(card.context_length for card in self._cards_of(route))

    def generation(self, asked: GenerateRequest, request_id: str, sink: Sink) -> list[Sequence]:
        """One sequence per choice. Raises: InvalidRequestError, ContextLengthError, UnknownShardError."""
        asked.validate()
        if asked.n > self._limits.max_waiting:
            raise InvalidRequestError(
                f"n: got {asked.n}, expected at most limits.max_waiting ({self._limits.max_waiting})"
            )
        route = self._route(asked.use_braiding, asked.shard)
        self._check_token_ids("logit_bias", asked.sampling.logit_bias, route)
        self._check_token_ids("stop_token_ids", asked.sampling.stop_token_ids, route)
        prompt = self._encode(asked.prompt, route).token_ids
        self._check_length(len(prompt), asked.sampling.max_tokens, route)
        woven = self._weave(prompt, route)
        request = Request(request_id, sink, asked.n, len(prompt), self._timeout_s(asked.timeout_s))
        if asked.timings:
            request.steps = StepShare(
                [shard.name for shard in self._plan.shards], [point.name for point in self._plan.points]
            )
        return [
            GeneratedSequence.begin(
                request,
                index,
                route,
                prompt,
                asked.sampling,
                self._codec(route),
                self._eos(route),
                woven,
                asked.stability,
            )
            for index in range(asked.n)
        ]

    def scoring(self, asked: ScoreRequest, request_id: str, sink: Sink) -> Sequence:
        """The sequence of a text. Raises: as `generation`."""
        asked.validate()
        route = self._route(asked.use_braiding, asked.shard)
        encoded = self._encode(asked.prompt, route)
        self._check_length(len(encoded.token_ids), 0, route)
        request = Request(request_id, sink, 1, len(encoded.token_ids), self._timeout_s(asked.timeout_s))
        vocab_size = max(card.vocab_size for card in self._cards)
        return ScoredSequence(
            request=request,
            index=0,
            route=route,
            token_ids=list(encoded.token_ids),
            woven=self._weave(encoded.token_ids, route),
            max_rows=max(1, _MAX_LOGIT_BYTES // (4 * vocab_size)),
            num_bytes=self._scored_bytes(asked.prompt, encoded, self._codec(route)),
            num_top=asked.top_logprobs,
        )

    def check_unused(self, request_id: str, running: Container[str]) -> None:
        """Raises: ConflictError if a request of that id runs already."""
        if request_id in running:
            raise ConflictError(f"request_id: {request_id!r} is already running, expected one that is not")

    def _route(self, use_braiding: UseBraiding, shard: str | None) -> int:
        if not isinstance(use_braiding, bool):
            raise InvalidRequestError(
                f"use_braiding: got {use_braiding!r} where nobody decides, expected true or false"
            )
        if use_braiding:
            return BRAIDED
        names = [one.name for one in self._plan.shards]
        if shard is None:
            return self._plan.anchor
        if shard not in names:
            raise UnknownShardError(f"shard: got {shard!r}, expected one of {', '.join(names)}")
        return names.index(shard)

    def _encode(self, prompt: str | tuple[int, ...], route: int) -> Encoded:
        if isinstance(prompt, str):
            self._check_characters(prompt, route)
            encoded = self._codec(route).encode(prompt)
            if not encoded.token_ids:
                raise InvalidRequestError("prompt: got a text without any token, expected at least one")
            return encoded
        self._check_token_ids("prompt", prompt, route)
        return Encoded(prompt, ((0, 0),) * len(prompt))

    def _check_characters(self, prompt: str, route: int) -> None:
        """Refuse what can't fit before it is tokenized, which takes seconds for some megabytes."""
        limit, longest = self.context_length(route), self._codec(route).longest_token
        if len(prompt) > limit * longest:
            raise ContextLengthError(
                f"prompt: got {len(prompt)} characters, expected at most {limit * longest}: "
                f"{limit} tokens of at most {longest}"
            )

    def _check_token_ids(self, name: str, token_ids: object, route: int) -> None:
        cards = self._cards_of(route)
        size = min(card.vocab_size for card in cards)
        for token_id in token_ids:  # type: ignore[attr-defined]
            if not 0 <= token_id < size:
                raise InvalidRequestError(
                    f"{name}: got token id {token_id}, expected between 0 and {size - 1}"
                )

    def _check_length(self, prompt_tokens: int, max_tokens: int, route: int) -> None:
        limit = self.context_length(route)
        if prompt_tokens + max_tokens <= limit:
            return
        cards = self._cards_of(route)
        tightest = min(cards, key=lambda card: card.context_length)
        if prompt_tokens >= limit:
            got, expected = f"prompt: got {prompt_tokens} tokens", f"fewer than {limit}"
        else:
            got = f"max_tokens: got {max_tokens} after a prompt of {prompt_tokens} tokens"
            expected = f"at most {limit - prompt_tokens}"
        raise ContextLengthError(f"{got}, expected {expected}: shard {tightest.name!r} holds {limit} tokens")

    def _timeout_s(self, asked_s: float | None) -> float:
        limit = self._limits.request_timeout_s
        return limit if asked_s is None else min(asked_s, limit)

    def _weave(self, token_ids: tuple[int, ...], route: int) -> WovenText | None:
        """What shards with other tokenizers read. Raises: ContextLengthError if one can't hold it."""
        woven = self._lanes.weave(token_ids) if route == BRAIDED else None
        if woven is not None and woven.is_full:
            for card, lane in zip(self._cards, self._lanes.lane_of, strict=True):
                if lane > 0 and woven.num_tokens(lane) > card.context_length:
                    raise ContextLengthError(
                        f"prompt: got {woven.num_tokens(lane)} tokens in the tokenizer of shard {card.name!r}, "
                        f"expected at most {card.context_length}"
                    )
        return woven

    def _cards_of(self, route: int) -> Many[ShardCard]:
        """The shards that take a route's token ids as they are."""
        if route != BRAIDED:
            return [self._cards[route]]
        return [card for card, lane in zip(self._cards, self._lanes.lane_of, strict=True) if lane == 0]

    def _codec(self, route: int) -> TextCodec:
        return self._lanes.anchor if route == BRAIDED else self._lanes.codec(route)

    def _eos(self, route: int) -> frozenset[int]:
        return frozenset(self._cards[self._plan.anchor if route == BRAIDED else route].eos_token_ids)

    @staticmethod
    def _scored_bytes(prompt: str | tuple[int, ...], encoded: Encoded, codec: TextCodec) -> int:
        """UTF-8 length of what has a log-probability: the text behind the first token."""
        if isinstance(prompt, str):
            return len(prompt[encoded.offsets[0][1] :].encode())
        whole = codec.decode(prompt, keep_special_tokens=True)
        return len(whole.encode()) - len(codec.token_name(prompt[0]).encode())
