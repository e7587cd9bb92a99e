"""Picks the next token from next-token scores. Each choice has its own random generator, so that what it
draws does not depend on what else is in its batch. Knows no models.

Shapes: V vocabulary.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_orchestrator.engine.requests import SamplingOptions
from braid_rpc.errors import InvalidRequestError

_GREEDY_BELOW = 1e-5


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

    def pick(self, logits_V: Tensor) -> Pick:
        """Args: logits_V: scores, any float dtype, not changed."""
        options = self._options
        raw_V = logits_V.float()
        scores_V = self._adjust(raw_V)
        token_id = self._draw(scores_V)
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

    def _draw(self, scores_V: Tensor) -> int:
        options = self._options
        best = int(scores_V.argmax())
        if not torch.isfinite(scores_V[best]):
            raise InvalidRequestError(
                f"sampling options: the best of {scores_V.numel()} tokens has score {float(scores_V[best])}, "
                "expected at least one token that may be picked"
            )
        if options.temperature < _GREEDY_BELOW:
            return best
        scores_V = scores_V.double() / options.temperature
        if options.top_k and options.top_k < scores_V.numel():
            values_K, ids_K = scores_V.topk(options.top_k)
        else:
            values_K, ids_K = scores_V.sort(descending=True, stable=True)
        probs_K = torch.softmax(values_K, dim=-1)
        if options.min_p:
            probs_K = torch.where(probs_K >= options.min_p * probs_K[0], probs_K, 0.0)
        if options.top_p < 1.0:
            mass_before_K = probs_K.cumsum(-1) - probs_K
            probs_K = torch.where(mass_before_K < options.top_p * probs_K.sum(), probs_K, 0.0)
        cumulative_K = probs_K.cumsum(-1)
        threshold = torch.rand((), generator=self._generator, dtype=torch.float64) * cumulative_K[-1]
        at = int(torch.searchsorted(cumulative_K, threshold, right=True))
        return int(ids_K[min(at, int((probs_K > 0).nonzero()[-1]))])
