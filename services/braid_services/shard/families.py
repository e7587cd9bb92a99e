"""Which model families are tested, and why some others cannot be served. Decides nothing: `parity` does that,
by running the model."""

from __future__ import annotations

from braid_rpc.errors import UnsupportedModelError

TESTED = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma2",
    "gemma3",
    "gpt_neox",
    "gpt2",
    "opt",
    "olmo2",
    "smollm3",
    "granite",
    "stablelm",
    "cohere",
)

_OWN_ATTENTION = (
    "its layers compute attention in code of their own, past transformers' attention interface, and a shard "
    "that cannot see their keys and values cannot keep them apart for each session"
)
_NO_ATTENTION = (
    "its layers carry a recurrent state in place of keys and values, which a shard cannot cut at a position "
    "or keep for several sessions in one batch"
)
_REASONS = {
    **dict.fromkeys(("gpt_neo", "gptj", "falcon", "bloom", "codegen", "mpt", "xglm"), _OWN_ATTENTION),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba"), _NO_ATTENTION),
}


def explained(family: str, found: UnsupportedModelError) -> UnsupportedModelError:
    """A refusal that says also why, where that is known of the family, and what can be served instead."""
    why = f" ({_REASONS[family]})" if family in _REASONS else ""
    return UnsupportedModelError(f"{found.message}{why}; families that work: {', '.join(TESTED)}")
