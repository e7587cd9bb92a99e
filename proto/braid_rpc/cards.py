"""What a shard says about itself. Knows how a card travels, not how it is made."""

from __future__ import annotations

from dataclasses import dataclass

from braid_rpc.v1 import shard_pb2

PROTOCOL_VERSION = 1


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

    def to_proto(self) -> shard_pb2.ShardCard:
        """The message that says the same."""
        return shard_pb2.ShardCard(**{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_proto(cls, message: shard_pb2.ShardCard) -> ShardCard:
        """The card that a message carries."""
        values = {name: getattr(message, name) for name in cls.__slots__}
        values["eos_token_ids"] = tuple(message.eos_token_ids)
        return cls(**values)
