"""One model as the braiding guide wraps it: encode, forward with all hidden states, generate.

Shapes: B texts, T tokens of the longest, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from braid_orchestrator.engine.requests import GenerateRequest, SamplingOptions, ScoreRequest, ScoreResult
from braid_orchestrator.inprocess.generation import InProcessBraid, alone
from braid_rpc.errors import InvalidRequestError
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.quantization import canonical


class ModelWrapper:
    """A causal language model with its tokenizer, frozen, ready to be used alone or in a `BraidedLLM`."""

    def __init__(
        self,
        model_name: str | Path,
        quantization: str | None = None,
        role: str | None = None,
        *,
        name: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """Load a model.

        Args:
            model_name: a folder in the Hugging Face layout or a hub name.
            quantization: None, "int8" ("8bit") or "nf4" ("4bit"): how the weights are held; what is not
                quantized, and all states, are in ``dtype``.
            role: what the model is good at; also its name in a braid, unless ``name`` says otherwise.
            dtype: float32, bfloat16 or float16.

        Raises: UnknownModelError, UnsupportedModelError, CorruptWeightsError, ConfigError.
        """
        name = name or role or Path(model_name).name
        config = ShardConfig(
            name,
            str(model_name),
            dtype,
            device,
            threads=0,
            role=role or "",
            quantization=canonical(quantization) or None,
        )
        self._set(ShardBackend.load(config), role)

    @classmethod
    def from_backend(cls, backend: ShardBackend, role: str | None = None) -> ModelWrapper:
        """Wrap a shard that is loaded already."""
        wrapper = cls.__new__(cls)
        wrapper._set(backend, role or backend.config.role or None)
        return wrapper

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, name: str, role: str | None = None, quantization: str | None = None
    ) -> ModelWrapper:
        """Wrap a transformers model in memory. It is frozen and put into eval mode; or, with ``quantization``,
        left as it is, and a quantized copy is wrapped."""
        config = ShardConfig(
            name=name,
            model=model.config.name_or_path or name,
            role=role or "",
            quantization=canonical(quantization) or None,
        )
        return cls.from_backend(ShardBackend.from_model(model, tokenizer, config), role)

    def _set(self, backend: ShardBackend, role: str | None) -> None:
        self.backend = backend
        self.role = role
        self.name = backend.config.name
        self.model_name = backend.config.model
        self._engine: InProcessBraid | None = None

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.backend.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.backend.tokenizer

    @property
    def num_layers(self) -> int:
        """How many decoder layers the model has."""
        return self.backend.card.num_layers

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's own parameters, which braiding never changes."""
        yield from self.backend.model.parameters()

    def encode(self, text: str | Sequence[str]) -> dict[str, Tensor]:
        """Token ids (B, T), padded on the right, and their attention mask: 1 for tokens, 0 for padding.

        Raises: InvalidRequestError for an empty text.
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.backend.tokenize(one, add_special_tokens=True)[0] for one in texts]
        if not rows or not all(rows):
            raise InvalidRequestError("text: got an empty one, expected at least one token in each")
        longest = max(map(len, rows))
        input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = torch.tensor(row)
            attention_mask[index, : len(row)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def decode(self, token_ids: Tensor | Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.backend.detokenize(token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """The model's own forward: ``.logits`` (B, T, V) and ``.hidden_states``, a tuple of (B, T, D): the
        embeddings, the states after each layer, and in place of the last layer's what enters the head."""
        with self.backend.plain_model() as model:
            device = self.backend.spans.device
            return model(
                input_ids=input_ids.to(device),
                attention_mask=None if attention_mask is None else attention_mask.to(device),
                output_hidden_states=True,
                use_cache=False,
            )

    def generate(
        self, prompt: str, max_new_tokens: int = 128, temperature: float = 0.0, **sampling: Any
    ) -> str:
        """What this model alone writes after a prompt. Temperature 0 is greedy.

        Args:
            sampling: further `SamplingOptions`, such as top_k, top_p, seed, stop.

        Raises: BraidError, such as InvalidRequestError or ContextLengthError.
        """
        options = SamplingOptions(max_tokens=max_new_tokens, temperature=temperature, **sampling)
        return self._running().complete(GenerateRequest(prompt, options)).text

    def score(self, request: str | ScoreRequest) -> ScoreResult:
        """Log-probabilities of a text, token by token. Raises: BraidError."""
        return self._running().score(ScoreRequest(request) if isinstance(request, str) else request)

    def _running(self) -> InProcessBraid:
        if self._engine is None:
            self._engine = InProcessBraid(self.name, [self.backend], alone(self.backend))
        return self._engine
