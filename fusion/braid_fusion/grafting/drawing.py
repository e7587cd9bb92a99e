"""Draws the next token from a model's logits, and gives out its text. Knows no model.

Letters: V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

# Tokens of the text before that are decoded along with new ones, so that spacing comes out right.
_CONTEXT_TOKENS = 5
# No character takes more tokens than this; what is held back longer is no character.
_MAX_HELD_TOKENS = 8


def draw(logits_V: Tensor, temperature: float, top_k: int, top_p: float, generator: Generator) -> int:
    """The next token's id; ``temperature`` 0 takes the likeliest. Logits are finite, on the CPU."""
    if temperature == 0.0:
        return int(logits_V.argmax())
    scores_V = (logits_V.double() - logits_V.max()) / temperature
    if 0 < top_k < len(scores_V):
        scores_V = scores_V.masked_fill(scores_V < scores_V.topk(top_k).values[-1], -torch.inf)
    odds_V = torch.softmax(scores_V, -1)
    if top_p < 1.0:
        sorted_V, ids_V = odds_V.sort(descending=True)
        # The fewest that hold top_p of the mass: those before which less than that stands.
        kept_V = torch.where(sorted_V.cumsum(-1) - sorted_V < top_p, sorted_V, 0.0)
        odds_V = torch.zeros_like(odds_V).scatter_(0, ids_V, kept_V)
    return int(torch.multinomial(odds_V, 1, generator=generator))


class GrowingText:
    """The text of a growing list of token ids: each character once, and only when it is whole."""

    def __init__(self, tokenizer: Any, prompt_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._window = prompt_ids[-_CONTEXT_TOKENS:]
        self._num_settled = len(self._window)
        self._told = len(self._decode())

    def push(self, token_id: int) -> str:
        """What became certain with this token."""
        self._window.append(token_id)
        text = self._decode()
        is_open = text.endswith("\N{REPLACEMENT CHARACTER}")
        if is_open and len(self._window) - self._num_settled < _MAX_HELD_TOKENS:
            return ""
        return self._settle(text)

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        return self._settle(self._decode())

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        return text

    def _settle(self, text: str) -> str:
        fresh = text[self._told :]
        if fresh:
            # Tokens that were told stay only for the spacing of those that follow.
            self._window = self._window[self._num_settled :]
            self._num_settled = len(self._window)
            self._told = len(self._decode())
        return fresh
