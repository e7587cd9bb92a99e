"""What a braid is compared with: its models by plain transformers, each alone or both, without exchange.

Greedy decoding with a KV cache, written as tightly as transformers allows: no `generate` around it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from braid_orchestrator.bench.pair import SEEDS, ModelSize, make_model, settle_memory


@dataclass(frozen=True, slots=True)
class Decoded:
    """``start_s``, and when each token was there, by the clock that all processes of the machine share. The
    prompt was read before."""

    start_s: float
    token_ids: list[int]
    picked_s: list[float]

    @property
    def end_s(self) -> float:
        """When the last token was there."""
        return self.picked_s[-1]

    @property
    def seconds(self) -> float:
        """From the first step to the last."""
        return self.end_s - self.start_s


class PlainModels:
    """Models of the pair in a process of their own. ``meet`` is a barrier shared with another such process."""

    def __init__(self, indices: tuple[int, ...], size: ModelSize, num_threads: int, meet: Any = None) -> None:
        self._models = {index: make_model(SEEDS[index], size) for index in indices}
        self._meet = meet
        settle_memory(num_threads)

    def decode(self, index: int, prompt: tuple[int, ...], num_tokens: int, together: bool = False) -> Decoded:
        """``num_tokens`` decode steps of one model after the prompt.

        ``together``: begin them at the same moment as the other process begins its own.
        """
        model = self._models[index]
        with torch.inference_mode():
            cache = DynamicCache(config=model.config)
            logits = model(
                torch.tensor([prompt]), past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits
            token = logits[:, -1].argmax(-1, keepdim=True)
            if together:
                self._meet.wait()
            picked: list[int] = []
            picked_s: list[float] = []
            start_s = time.perf_counter()
            for _ in range(num_tokens):
                logits = model(token, past_key_values=cache, use_cache=True).logits
                token = logits[:, -1].argmax(-1, keepdim=True)
                picked.append(int(token))
                picked_s.append(time.perf_counter())
            return Decoded(start_s, picked, picked_s)

    def prefill(self, index: int, prompt: tuple[int, ...], together: bool = False) -> tuple[float, float]:
        """Read a prompt into a fresh cache, up to the next token. Returns: when it began, and when the token was
        there."""
        model, ids = self._models[index], torch.tensor([prompt])
        with torch.inference_mode():
            if together:
                self._meet.wait()
            start_s = time.perf_counter()
            cache = DynamicCache(config=model.config)
            int(model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax())
            return start_s, time.perf_counter()

    def decode_in_turn(self, prompt: tuple[int, ...], num_tokens: int) -> list[Decoded]:
        """All models, one after the other."""
        return [self.decode(index, prompt, num_tokens) for index in self._models]


class RereadingPair:
    """The pair as it is run most simply: every model over the whole text again for every token, all hidden
    states kept, logits averaged."""

    def __init__(self, size: ModelSize, num_threads: int) -> None:
        self._models = [make_model(seed, size) for seed in SEEDS]
        settle_memory(num_threads)

    def seconds_per_token(self, text: tuple[int, ...], num_tokens: int) -> float:
        """While ``num_tokens`` tokens are added to a text of that length."""
        ids = torch.tensor([text])
        with torch.inference_mode():
            started = time.perf_counter()
            for _ in range(num_tokens):
                outputs = [model(ids, output_hidden_states=True, use_cache=False) for model in self._models]
                mean = torch.stack([output.logits for output in outputs]).mean(dim=0)
                token = mean[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, token], dim=1)
            return (time.perf_counter() - started) / num_tokens


class StaticBatch:
    """One model decoding a batch of prompts that begin and end together. ``meet`` as of `PlainModels`."""

    def __init__(
        self, index: int, size: ModelSize, prompts: tuple[tuple[int, ...], ...], meet: Any = None
    ) -> None:
        """``prompts`` are of one length, and read here."""
        self._model = make_model(SEEDS[index], size)
        self._meet = meet
        torch.set_num_threads(1)
        with torch.inference_mode():
            self._cache = DynamicCache(config=self._model.config)
            self._length = len(prompts[0])
            logits = self._model(
                torch.tensor(prompts), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            ).logits
            self._first = logits[:, -1].argmax(-1, keepdim=True)
        settle_memory(1)

    def decode(self, num_tokens: int, together: bool = False) -> tuple[float, float]:
        """``num_tokens`` greedy steps of the whole batch after the prompts. Returns: when they began and ended."""
        with torch.inference_mode():
            too_long = self._cache.get_seq_length() - self._length
            if too_long:
                self._cache.crop(-too_long)
            token = self._first
            if together:
                self._meet.wait()
            start_s = time.perf_counter()
            for _ in range(num_tokens):
                logits = self._model(token, past_key_values=self._cache, use_cache=True).logits
                token = logits[:, -1].argmax(-1, keepdim=True)
            int(token[0])
            return start_s, time.perf_counter()
