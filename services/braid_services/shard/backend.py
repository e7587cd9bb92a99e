"""One base model, ready to be run span by span for many callers. Knows torch and no network.

Shapes: T packed rows, R logit rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from braid_rpc.cards import ChatFormat, ShardCard
from braid_rpc.errors import ContextLengthError, InvalidRequestError, UnsupportedModelError
from braid_rpc.frames import formats_for
from braid_services.shard import fingerprint, loading, parity
from braid_services.shard.cache import CachePool
from braid_services.shard.config import ShardConfig
from braid_services.shard.families import explained
from braid_services.shard.forward import SpanForward
from braid_services.shard.quantization import canonical, quantize, stored_quantization
from braid_services.shard.spans import SpanModel
from braid_services.shard.stream import ShardStream
from braid_services.shard.training.backend import ShardTraining


class ShardBackend:
    """A causal language model with its tokenizer and the caches of all callers' sessions.

    The model becomes the backend's: eval mode, gradients of its parameters off. One lock guards its compute,
    so streams and forwards may live on different threads.
    """

    def __init__(self, model: Any, tokenizer: Any, config: ShardConfig, model_hash: str = "") -> None:
        """Use `load` or `from_model`. ``model_hash``: of the weights as stored; empty: as they are here.

        Raises: UnsupportedModelError if the model fails the parity check."""
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        try:
            self.spans = SpanModel.of(model)
            layers = parity.probe(self.spans)
            self.parity_error = parity.check(self.spans, layers)
        except UnsupportedModelError as error:
            raise explained(model.config.model_type, error) from error
        self.context_length = loading.context_length(model, [layer.window for layer in layers])
        self.pool = CachePool(
            layers,
            dtype=self.spans.dtype,
            device=self.spans.device,
            total_bytes=config.cache_bytes,
            block_tokens=config.block_tokens,
            ttl_s=config.session_ttl_s,
        )
        self._tokenizer = loading.fast_tokenizer(tokenizer, f"shard {config.name!r}")
        self._tokenizer_json = self._tokenizer.to_str() if self._tokenizer else ""
        self._watch: threading.Timer | None = None
        model_hash = model_hash or fingerprint.model_hash(model)
        self.training = ShardTraining(self.spans, config, self.context_length, model_hash)
        self._fixed_card = self._make_card(model_hash)

    @classmethod
    def load(cls, config: ShardConfig) -> ShardBackend:
        """Load the model that a config names. ``config.threads`` sets torch's thread count for the process.

        Raises: UnknownModelError, CorruptWeightsError, UnsupportedModelError, ConfigError.
        """
        if config.threads:
            torch.set_num_threads(config.threads)
        model, tokenizer, model_hash = loading.load_model(config)
        return cls(model, tokenizer, config, model_hash)

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any = None, config: ShardConfig | None = None) -> ShardBackend:
        """Serve a model that is in memory already. ``tokenizer``: of transformers or tokenizers, or none.

        With ``config.quantization`` a quantized copy is served. Raises: UnsupportedModelError, ConfigError.
        """
        if config is None:
            config = ShardConfig(name=model.config.model_type, model=model.config.name_or_path or "in memory")
        quantization = canonical(config.quantization)
        if not quantization:
            return cls(model, tokenizer, config)
        model_hash = fingerprint.quantized_hash(fingerprint.model_hash(model), quantization)
        return cls(quantize(model, quantization, f"shard {config.name!r}"), tokenizer, config, model_hash)

    @property
    def card(self) -> ShardCard:
        """The shard's identity and shape, with the cache's present state."""
        values = {name: getattr(self._fixed_card, name) for name in ShardCard.__slots__}
        values.update(cache_bytes_free=self.pool.bytes_free, num_sessions=self.pool.num_sessions)
        return ShardCard(**values)

    @property
    def chat_format(self) -> ChatFormat:
        """How the model expects a conversation; an empty template if its tokenizer says nothing about it."""
        return loading.chat_format(self.tokenizer)

    def tokenizer_json(self) -> str:
        """The tokenizer as the tokenizers library writes it. Raises: UnsupportedModelError without one."""
        self._tokenizer_or_refuse()
        return self._tokenizer_json

    def tokenize(
        self, text: str, *, add_special_tokens: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and the characters [start, end) of the text that each stands for."""
        encoding = self._tokenizer_or_refuse().encode(text, add_special_tokens=add_special_tokens)
        return encoding.ids, encoding.offsets

    def detokenize(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        """The text of token ids. Raises: InvalidRequestError for an id out of range."""
        wrong = [token_id for token_id in token_ids if not 0 <= token_id < self.spans.input_vocab]
        if wrong:
            raise InvalidRequestError(f"token_ids: got {wrong[0]}, expected [0, {self.spans.input_vocab})")
        return self._tokenizer_or_refuse().decode(
            list(token_ids), skip_special_tokens=not keep_special_tokens
        )

    def stream(self, max_result_bytes: int | None = None) -> ShardStream:
        """One caller's view, for one thread; ``max_result_bytes`` bounds what one span may give."""
        return ShardStream(self, max_result_bytes)

    def forward(
        self, token_ids_T: Tensor, lengths: Sequence[int], logit_rows: Sequence[int] | None = None
    ) -> SpanForward:
        """A stateless, differentiable run over whole sequences of ``lengths``, packed into T rows.

        ``logit_rows``: the rows whose logits are wanted; None: all. Raises: ContextLengthError,
        ShapeMismatchError, InvalidRequestError.
        """
        if lengths and max(lengths) > self.context_length:
            raise ContextLengthError(f"got {max(lengths)} tokens, expected at most {self.context_length}")
        return SpanForward(self.spans, token_ids_T, lengths, logit_rows)

    @contextmanager
    def plain_model(self) -> Iterator[Any]:
        """The model with its own attention, for as long as the block runs; everyone else waits."""
        with self.spans.lock:
            yield self.model

    def watch_idle_sessions(self) -> None:
        """Make sure idle sessions are evicted even when nobody calls. The caller holds the lock."""
        if self._watch is None and self.pool.num_sessions:
            self._watch = threading.Timer(max(self.config.session_ttl_s / 4, 0.05), self._evict_idle)
            self._watch.daemon = True
            self._watch.start()

    def _evict_idle(self) -> None:
        with self.spans.lock:
            self._watch = None
            self.pool.evict_idle()
            self.watch_idle_sessions()

    def _tokenizer_or_refuse(self) -> Tokenizer:
        if self._tokenizer is None:
            raise UnsupportedModelError(f"shard {self.config.name!r}: the model came without a tokenizer")
        return self._tokenizer

    def _make_card(self, model_hash: str) -> ShardCard:
        return ShardCard(
            name=self.config.name,
            model_id=self.config.model,
            model_hash=model_hash,
            family=self.spans.family,
            num_layers=self.spans.num_layers,
            width=self.spans.width,
            vocab_size=self.spans.vocab_size,
            tokenizer_hash=fingerprint.tokenizer_hash(self._tokenizer_json),
            dtype=str(self.spans.dtype).removeprefix("torch."),
            context_length=self.context_length,
            cache_bytes_total=self.pool.total_bytes,
            cache_bytes_free=self.pool.bytes_free,
            block_tokens=self.pool.block_tokens,
            num_parameters=self.model.num_parameters(),
            quantization=stored_quantization(self.model),
            frames=formats_for(str(self.spans.dtype).removeprefix("torch.")),
            supports_backward=not self.training.no_backward,
            eos_token_ids=loading.eos_token_ids(self.model),
        )
