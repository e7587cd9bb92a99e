"""How one shard is served. Plain values; validated where configuration enters."""

from __future__ import annotations

from dataclasses import dataclass

# How the braiding guide calls these quantizations.
ALIASES = {"8bit": "int8", "4bit": "nf4"}


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """``model`` is a local folder in the Hugging Face layout or a hub name.

    ``threads`` 0 leaves torch's own choice. ``cache_bytes`` bounds all sessions' keys and values together;
    they are allocated in blocks of ``block_tokens``. Sessions untouched for ``session_ttl_s`` are evicted.
    ``max_message_bytes`` bounds one message on the wire, both ways. ``quantization`` is None, ``int8`` or ``nf4``.
    ``frames`` is the format of states on the wire, see `braid_rpc.frames`; None: the model's dtype.

    Training takes at most ``training_share`` of the time while anybody is served (0: the shard refuses training), in
    turns of whole sequences of together at most ``training_turn_rows`` tokens, or of one that is longer. Graphs of at
    most ``training_bytes`` wait for their gradients, each for at most ``training_ttl_s``.
    """

    name: str
    model: str
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    cache_bytes: int = 512 * 2**20
    block_tokens: int = 64
    session_ttl_s: float = 600.0
    max_message_bytes: int = 64 * 2**20
    role: str = ""
    quantization: str | None = None
    frames: str | None = None
    training_share: float = 0.5
    training_turn_rows: int = 512
    training_bytes: int = 256 * 2**20
    training_ttl_s: float = 120.0
