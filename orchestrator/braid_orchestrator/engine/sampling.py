"""Picks the next token from next-token scores. Each choice has its own random generator, so that what it
draws does not depend on what else is in its batch. Knows no models.

Shapes: V vocabulary.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_orchestrator.engine.requests import SamplingOptions
from braid_rpc.errors import InvalidRequestError

_GREEDY_BELOW = 1e-5
# How many tokens are looked at first for those that hold top_p of the mass.
_FIRST_NUCLEUS = 256


@dataclass(frozen=True, slots=True)
class Pick:
    """The token picked, with log-probabilities of the distribution before any sampling option changed it."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Sampling state of one choice: options, random generator, counts of the tokens seen."""

    def __init__(
        self,
        options: SamplingOptions,
        prompt_ids: Iterable[int],
        eos_token_ids: Iterable[int],
        index: int = 0,
    ) -> None:
        """``index`` is the number of the choice: choices of one seed draw differently."""
        self._options = options
        self._seen_in_prompt = set(prompt_ids)
        self._counts: Counter[int] = Counter()
        self._num_picked = 0
        self._end_ids = sorted({*options.stop_token_ids, *eos_token_ids})
        self._biased_ids = torch.tensor(list(options.logit_bias), dtype=torch.int64)
        self._biases = torch.tensor(list(options.logit_bias.values()), dtype=torch.float32)
        self._generator = torch.Generator()
        seed = options.seed if options.seed is not None else secrets.randbits(62)
        self._generator.manual_seed((seed + index * 0x9E3779B97F4A7C15) % 2**63)

    def pick(self, logits_V: Tensor, temperature: float | None = None) -> Pick:
        """Pick from these scores, any float dtype, not changed; at ``temperature`` if it is given instead of the
        options', unless those are greedy."""
        options = self._options
        raw_V = logits_V.float()
        scores_V = self._adjust(raw_V)
        token_id = self._draw(scores_V, options.temperature if temperature is None else temperature)
        self._counts[token_id] += 1
        self._num_picked += 1
        if options.logprobs is None:
            return Pick(token_id)
        logprobs_V = torch.log_softmax(raw_V, dim=-1)
        top: tuple[tuple[int, float], ...] = ()
        if options.logprobs:
            values, ids = logprobs_V.topk(min(options.logprobs, logprobs_V.numel()))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Pick(token_id, float(logprobs_V[token_id]), top)

    def replay(self, token_id: int) -> None:
        """As if this token had just been picked: counts and random generator stand as they did then."""
        self._counts[token_id] += 1
        self._num_picked += 1
        if self._options.temperature >= _GREEDY_BELOW:
            self._random()

    def _adjust(self, raw_V: Tensor) -> Tensor:
        """Bias, penalties and forbidden ends; returns ``raw_V`` itself if there is nothing to change."""
        options = self._options
        scores_V = raw_V
        vocab_size = raw_V.numel()

        def own() -> Tensor:
            return raw_V.clone() if scores_V is raw_V else scores_V

        if options.logit_bias:
            scores_V = own()
            highest = int(self._biased_ids.max())
            if highest >= vocab_size:
                raise InvalidRequestError(f"logit_bias: got token id {highest}, expected below {vocab_size}")
            scores_V[self._biased_ids] += self._biases
        if options.repetition_penalty != 1.0:
            scores_V = own()
            seen = torch.tensor(sorted(self._seen_in_prompt | set(self._counts)))
            values = scores_V[seen]
            penalty = options.repetition_penalty
            scores_V[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self._counts and (options.presence_penalty or options.frequency_penalty):
            scores_V = own()
            ids = torch.tensor(list(self._counts))
            counts = torch.tensor(list(self._counts.values()), dtype=scores_V.dtype)
            scores_V[ids] -= options.presence_penalty + options.frequency_penalty * counts
        forbidden = self._end_ids if self._num_picked < options.min_tokens else []
        if forbidden:
            scores_V = own()
            scores_V[[token_id for token_id in forbidden if token_id < vocab_size]] = -torch.inf
        return scores_V

    def _draw(self, scores_V: Tensor, temperature: float) -> int:
        options = self._options
        best = int(scores_V.numpy().argmax())  # several times faster than torch's own
        highest = float(scores_V[best])
        if not math.isfinite(highest):
            raise InvalidRequestError(
                f"sampling options: the best of {scores_V.numel()} tokens has score {highest}, "
                "expected at least one token that may be picked"
            )
        if options.temperature < _GREEDY_BELOW:
            return best
        # Relative to the most probable token's: the sum doesn't matter. The vocabulary is never sorted as a whole.
        odds_V = ((scores_V - highest) / max(temperature, _GREEDY_BELOW)).exp_()
        if options.top_k and options.top_k < odds_V.numel():
            odds_K, ids_K = odds_V.topk(options.top_k)
            odds_K = _nucleus(_at_least(odds_K, options.min_p), options.top_p)
            return int(ids_K[self._draw_index(odds_K, 0)])
        odds_V = _at_least(odds_V, options.min_p)
        if options.top_p == 1.0:
            return self._draw_index(odds_V, best)
        total = odds_V.sum(dtype=torch.float64)
        num_kept = min(_FIRST_NUCLEUS, odds_V.numel())
        odds_K, ids_K = odds_V.topk(num_kept)
        while num_kept < odds_V.numel() and odds_K.sum(dtype=torch.float64) < options.top_p * total:
            num_kept = min(8 * num_kept, odds_V.numel())
            odds_K, ids_K = odds_V.topk(num_kept)
        return int(ids_K[self._draw_index(_nucleus(odds_K, options.top_p, total), 0)])

    def _draw_index(self, odds_K: Tensor, otherwise: int) -> int:
        """An index with these odds; ``otherwise`` if rounding pushes the draw off the end."""
        cumulative_K = odds_K.cumsum(-1, dtype=torch.float64)
        threshold = self._random() * cumulative_K[-1]
        at = int(torch.searchsorted(cumulative_K, threshold, right=True))
        return at if at < odds_K.numel() else otherwise

    def _random(self) -> Tensor:
        """In [0, 1): one draw for every token that isn't picked greedily."""
        return torch.rand((), generator=self._generator, dtype=torch.float64)


def _at_least(odds_K: Tensor, min_p: float) -> Tensor:
    """Without those below ``min_p`` times the largest, which is one."""
    return torch.where(odds_K >= min_p, odds_K, 0.0) if min_p else odds_K


def _nucleus(odds_K: Tensor, top_p: float, total: Tensor | None = None) -> Tensor:
    """The fewest of the odds, in descending order, that hold ``top_p`` of the total; zeros for the others."""
    if top_p == 1.0:
        return odds_K
    cumulative_K = odds_K.cumsum(-1, dtype=torch.float64)
    limit = top_p * (cumulative_K[-1] if total is None else total)
    return torch.where(cumulative_K - odds_K < limit, odds_K, 0.0)
