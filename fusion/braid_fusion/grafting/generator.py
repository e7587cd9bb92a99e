"""Text from a grafted or bare model, watched token by token: told of, cooled down, ended where it diverges.

Runs the model's own forward with its own cache, so grafted layers are in every step. Knows no service: a braid's
engine has the same figures by `braid_fusion.resonance.stability`.

Letters: V vocabulary.
"""

from __future__ import annotations

import inspect
import operator
import secrets
from collections.abc import Generator as Steps
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from braid_fusion.errors import NonFiniteStateError, StabilityError
from braid_fusion.grafting.cache import cache_in
from braid_fusion.grafting.drawing import GrowingText, draw
from braid_fusion.grafting.generation import FinishReason, GeneratedToken, GenerationConfig, GenerationResult
from braid_fusion.grafting.perturbation import PerturbedTwin
from braid_fusion.resonance.stability import StabilityMonitor, coherence_of, order_of


class ResonanceGenerator:
    """Generates from one model, one text at a time.

    Args:
        model: a `ResonanceWrapper`, or any causal language model of transformers: then there is no coherence.
        tokenizer: of transformers, the model's own.
        gen_config: for all texts, unless a call says otherwise.
    """

    def __init__(self, model: Any, tokenizer: Any, gen_config: GenerationConfig | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.gen_config = gen_config or GenerationConfig()

    def generate(self, prompt: str | Sequence[int], **options: Any) -> GenerationResult:
        """What comes after a prompt: text, or token ids.

        States that are not finite end the text, with the reason "non_finite_state"; what came before is its result.

        Args:
            options: of `GenerationConfig`, instead of those in ``gen_config``; such as ``max_length``.

        Raises: StabilityError for options that make no sense, or a prompt that is empty or too long.
        """
        steps = self.stream(prompt, **options)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: GenerationResult = end.value
                return result

    def stream(
        self, prompt: str | Sequence[int], **options: Any
    ) -> Steps[GeneratedToken, None, GenerationResult]:
        """As `generate`, token by token; what it returns in the end is the result."""
        config = self._config(options)
        prompt_ids = self._encode(prompt)
        limit = config.limit(len(prompt_ids), self._num_positions())
        return self._run(prompt, prompt_ids, limit, config)

    def _run(
        self, prompt: str | Sequence[int], prompt_ids: list[int], limit: int, config: GenerationConfig
    ) -> Steps[GeneratedToken, None, GenerationResult]:
        seed = secrets.randbits(62) if config.seed is None else config.seed
        generator = torch.Generator().manual_seed(seed)
        twin = (
            PerturbedTwin(self.model, torch.Generator().manual_seed(seed))
            if config.measure_exponent
            else None
        )
        monitor, growing = config.monitor(), GrowingText(self.tokenizer, prompt_ids)
        ends = self._end_ids(config)
        tokens: list[GeneratedToken] = []
        error: str | None = None
        reason: FinishReason | None = None
        forward = _Forward(self.model)
        try:
            logits_V = forward.read(prompt_ids)
            while reason is None:
                token = self._next(logits_V, forward, monitor, growing, twin, generator, config)
                reason = _reason(token.token_id in ends, len(tokens) + 1 >= limit, monitor, config)
                if reason is not None:
                    token = replace(token, text=token.text + growing.flush())
                tokens.append(token)
                yield token
                if reason is None:
                    logits_V = forward.follow(token.token_id, twin)
        except NonFiniteStateError as caught:
            reason, error = "non_finite_state", str(caught)
        metrics = monitor.summary()
        return GenerationResult(
            prompt=prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt_ids),
            generated_text="".join(token.text for token in tokens) + growing.flush(),
            tokens=tuple(tokens),
            finish_reason=reason,
            stability_metrics=metrics if error is None else replace(metrics, is_stable=False),
            exponent=None if twin is None else twin.estimate,
            error=error,
        )

    def _next(
        self,
        logits_V: Tensor,
        forward: _Forward,
        monitor: StabilityMonitor,
        growing: GrowingText,
        twin: PerturbedTwin | None,
        generator: torch.Generator,
        config: GenerationConfig,
    ) -> GeneratedToken:
        logprobs_V = torch.log_softmax(logits_V, dim=-1)
        entropy = float(torch.special.entr(logprobs_V.exp()).sum())
        measured = forward.row_metrics()
        told = monitor.observe(entropy, coherence_of(measured), order_of(measured))
        token_id = draw(logits_V, told.temperature, config.top_k, config.top_p, generator)
        return GeneratedToken(
            token_id=token_id,
            token=str(self.tokenizer.convert_ids_to_tokens(token_id)),
            text=growing.push(token_id),
            logprob=float(logprobs_V[token_id]),
            entropy=entropy,
            temperature=told.temperature,
            lyapunov_estimate=told.lyapunov_estimate,
            coherence=told.coherence,
            kuramoto_order=told.kuramoto_order,
            exponent=None if twin is None else twin.estimate,
        )

    def _config(self, options: dict[str, Any]) -> GenerationConfig:
        try:
            return replace(self.gen_config, **options)
        except TypeError as error:
            names = ", ".join(inspect.signature(GenerationConfig).parameters)
            raise StabilityError(
                f"generate: got {sorted(options)}, expected among {names} ({error})"
            ) from error

    def _encode(self, prompt: str | Sequence[int]) -> list[int]:
        try:
            given = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            ids = [operator.index(token_id) for token_id in given]
        except TypeError:
            raise StabilityError(f"prompt: got {prompt!r}, expected one text, or its token ids") from None
        if not ids:
            raise StabilityError("prompt: got an empty prompt, expected at least one token")
        size = self.model.get_input_embeddings().weight.shape[0]
        beyond = [token_id for token_id in ids if not 0 <= token_id < size]
        if beyond:
            raise StabilityError(f"prompt: got token id {beyond[0]}, expected ids from 0 to {size - 1}")
        return ids

    def _num_positions(self) -> int | None:
        found: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return found

    def _end_ids(self, config: GenerationConfig) -> frozenset[int]:
        if config.eos_token_ids is not None:
            return frozenset(config.eos_token_ids)
        found = getattr(self.model.generation_config, "eos_token_id", None)
        if found is None:
            found = self.tokenizer.eos_token_id
        return frozenset(() if found is None else [found] if isinstance(found, int) else found)


def _reason(
    is_end: bool, is_full: bool, monitor: StabilityMonitor, config: GenerationConfig
) -> FinishReason | None:
    if is_end:
        return "eos"
    if is_full:
        return "length"
    return "instability" if config.stop_on_instability and not monitor.is_stable else None


class _Forward:
    """One text in the model, and its cache."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        base = getattr(model, "base_model", model) if hasattr(model, "fusion_layers") else model
        keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._options = {"logits_to_keep": 1} if keeps else {}
        self._cache: Any = None
        self._ids: list[int] = []

    def read(self, token_ids: list[int]) -> Tensor:
        """The logits (V,) behind these tokens, float32 on the CPU. Raises: NonFiniteStateError."""
        self._ids += token_ids
        # A model without a cache reads the whole text each time.
        given = token_ids if self._cache is not None else self._ids
        ids = torch.tensor([given], device=self._device)
        more = {} if self._cache is None else {"past_key_values": self._cache}
        with torch.no_grad(), _evaluating(self._model):
            output = self._model(input_ids=ids, use_cache=True, **more, **self._options)
        self._cache = cache_in(output)
        logits_V: Tensor = output.logits[0, -1].float().cpu()
        if not bool(torch.isfinite(logits_V).all()):
            depth = self._model.config.get_text_config().num_hidden_layers
            raise NonFiniteStateError(depth - 1, 0, len(self._ids) - 1, 1)
        return logits_V

    def follow(self, token_id: int, twin: PerturbedTwin | None) -> Tensor:
        """The logits behind one more token; the twin reads it first, displaced. Raises: NonFiniteStateError."""
        if twin is not None:
            if self._cache is None:
                raise StabilityError(
                    "measure_exponent: got a model without a key-value cache, expected one with it"
                )
            with torch.no_grad(), _evaluating(self._model):
                twin.step(token_id, self._cache)
        logits_V = self.read([token_id])
        if twin is not None:
            twin.compare(logits_V)
        return logits_V

    def row_metrics(self) -> dict[str, float]:
        """What grafted layers measured at the last position, by name: the mean over the layers that did."""
        if not hasattr(self._model, "last_row_metrics"):
            return {}
        values: dict[str, list[float]] = {}
        for measured in self._model.last_row_metrics().values():
            for name, rows_BT in measured.items():
                values.setdefault(name, []).append(float(rows_BT[0, -1]))
        return {name: sum(found) / len(found) for name, found in values.items()}


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout. The model is in the mode that it was in before, also between two tokens of a stream."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
