"""The prompt as the beginning of a completion: its text, and its log-probabilities where they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from braid_orchestrator.engine.requests import GenerateRequest, ScoreRequest, TopLogprob
from braid_orchestrator.http.collecting import finite
from braid_orchestrator.http.openai_schemas import LogprobsOut
from braid_orchestrator.serving.port import BraidPort
from braid_orchestrator.serving.shard_text import ShardText


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt told back."""

    text: str
    num_tokens: int
    logprobs: LogprobsOut | None


async def echo_of(service: BraidPort, request: GenerateRequest, num_top: int | None) -> Echo:
    """The prompt of a request, with ``num_top`` alternatives per token; None: without log-probabilities."""
    tokenizer = service.text(request.shard)
    text, offsets = await asyncio.to_thread(_text_and_offsets, tokenizer, request.prompt)
    if num_top is None:
        return Echo(text, len(offsets), None)
    score = await service.score(
        ScoreRequest(request.prompt, request.use_braiding, request.shard, top_logprobs=num_top)
    )
    # The first token has nothing before it, so nothing that it could be likely after.
    chosen = [None, *(finite(logprob) for logprob in score.logprobs[1:])]
    rows = score.top_logprobs or ((),) * len(chosen)
    tops = [
        top_logprobs_of(row, token, logprob)
        for row, token, logprob in zip(rows, score.tokens, chosen, strict=True)
    ]
    return Echo(
        text,
        len(score.token_ids),
        LogprobsOut(tokens=list(score.tokens), token_logprobs=chosen, top_logprobs=tops, text_offset=offsets),
    )


def top_logprobs_of(top: Sequence[TopLogprob], chosen: str, logprob: float | None) -> dict[str, float] | None:
    """The alternatives by their text, and the chosen token among them; None if there are no alternatives. Of
    different tokens with the same text the likeliest stands for all."""
    found: dict[str, float] = {}
    for one in top:
        found.setdefault(one.token, finite(one.logprob) or 0.0)
    if found and logprob is not None:
        found.setdefault(chosen, logprob)
    return found or None


def _text_and_offsets(tokenizer: ShardText, prompt: str | tuple[int, ...]) -> tuple[str, list[int]]:
    """The text, and where in it each token begins."""
    if isinstance(prompt, str):
        starts = (start for start, _ in tokenizer.encode(prompt).offsets)
        # Special tokens around the text stand at 0, wherever they are.
        return prompt, list(accumulate(starts, max))
    pieces = tokenizer.pieces(prompt)
    return "".join(pieces), [0, *accumulate(len(piece) for piece in pieces[:-1])]
