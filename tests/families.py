"""Tiny models with random weights, of all families that braiding and grafting are tested with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 67
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_MULTI_HEAD = {**_COMMON, "num_key_value_heads": 4}

# Windows are shorter than the texts of the tests, so that they cut.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "mistral": {**_COMMON, "sliding_window": 4},
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    "qwen2": {**_COMMON, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {**_COMMON, "head_dim": 16},
    "phi3": {**_COMMON, "sliding_window": 4},
    "gemma2": {**_COMMON, "head_dim": 16, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**_COMMON, "head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 2},
    "gpt_neox": {**_MULTI_HEAD, "rotary_pct": 0.25},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "opt": {**_MULTI_HEAD, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "olmo2": _COMMON,
    "smollm3": {**_COMMON, "use_sliding_window": True, "sliding_window": 4, "no_rope_layers": [1, 0, 1]},
    "granite": {**_COMMON, "attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "stablelm": {**_COMMON, "partial_rotary_factor": 0.25},
    "cohere": {**_COMMON, "logit_scale": 0.25},
    "gpt_oss": {
        **_COMMON,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "gpt_neo": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "max_position_embeddings": 64,
    },
    "gptj": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "rotary_dim": 4,
    },
    "falcon": {**_COMMON, "num_hidden_layers": 2},
    "bloom": {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def make_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random model whose weights are large enough for an error in attention to show."""
    settings = {**{**FAMILIES, **UNSUPPORTED}.get(family, _COMMON), **changes}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
