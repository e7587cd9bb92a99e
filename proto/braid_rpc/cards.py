"""What a shard says about itself. Knows how a card travels, not how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from braid_rpc.v1 import shard_pb2

PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model expects a conversation: a Jinja template as transformers has it (empty: none), and the special
    tokens that it may name (``bos_token``, ``eos_token`` and their like)."""

    template: str = ""
    special_tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A shard's whole tokenizer. ``tokenizer_json`` is what the tokenizers library reads."""

    tokenizer_json: str
    hash: str
    eos_token_ids: tuple[int, ...] = ()
    chat: ChatFormat = field(default_factory=ChatFormat)

    def to_proto(self) -> shard_pb2.TokenizerFile:
        """The message that says the same."""
        return shard_pb2.TokenizerFile(
            tokenizer_json=self.tokenizer_json,
            hash=self.hash,
            eos_token_ids=self.eos_token_ids,
            chat_template=self.chat.template,
            special_tokens=self.chat.special_tokens,
        )

    @classmethod
    def from_proto(cls, message: shard_pb2.TokenizerFile) -> TokenizerFile:
        """The file that a message carries."""
        chat = ChatFormat(message.chat_template, dict(message.special_tokens))
        return cls(message.tokenizer_json, message.hash, tuple(message.eos_token_ids), chat)


@dataclass(frozen=True, slots=True)
class ShardCard:
    """A shard's identity, shape and room. Sizes in bytes, lengths in tokens, ``width`` is the hidden size."""

    name: str
    model_id: str
    model_hash: str
    family: str
    num_layers: int
    width: int
    vocab_size: int
    tokenizer_hash: str
    dtype: str
    context_length: int
    cache_bytes_total: int
    cache_bytes_free: int
    block_tokens: int
    num_parameters: int
    eos_token_ids: tuple[int, ...] = ()
    quantization: str = ""
    supports_backward: bool = False
    num_sessions: int = 0
    protocol_version: int = PROTOCOL_VERSION
    frames: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, str]:
        """What all replicas of a shard have in common: else one that takes over would give other numbers."""
        return {
            "model": self.model_hash,
            "tokenizer": self.tokenizer_hash,
            "dtype": self.dtype,
            "quantization": self.quantization,
        }

    def difference_from(self, expected: ShardCard) -> str:
        """In what another shard's identity is another one, for people; empty: in nothing."""
        pairs = zip(self.identity.items(), expected.identity.values(), strict=True)
        return ", ".join(
            f"{name} {got or 'none'} instead of {other or 'none'}"
            for (name, got), other in pairs
            if got != other
        )

    def to_proto(self) -> shard_pb2.ShardCard:
        """The message that says the same."""
        return shard_pb2.ShardCard(**{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_proto(cls, message: shard_pb2.ShardCard) -> ShardCard:
        """The card that a message carries."""
        values = {name: getattr(message, name) for name in cls.__slots__}
        values["eos_token_ids"] = tuple(message.eos_token_ids)
        values["frames"] = tuple(message.frames)
        return cls(**values)
