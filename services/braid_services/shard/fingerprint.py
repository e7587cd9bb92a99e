"""Hashes that say which model and which tokenizer a shard serves. Knows nothing else about either."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

# Up to this size every byte counts; beyond, every tensor's name, shape and evenly spread chunks do.
FULL_HASH_BYTES = 256 * 2**20
_CHUNK_BYTES = 64 * 2**10
_CHUNKS_PER_TENSOR = 16

# Keys of a configuration that do not change what the model computes.
_IRRELEVANT_KEYS = frozenset(
    {
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "id2label",
        "label2id",
        "problem_type",
        "chunk_size_feed_forward",
    }
)


def model_hash(model: Any, full_hash_bytes: int = FULL_HASH_BYTES) -> str:
    """SHA-256 (hex, 16 digits) of a model's configuration and weights, in the dtype that they are held in.

    Up to ``full_hash_bytes`` of weights any changed value changes it; of larger models each tensor is
    sampled. The same for a model in memory, saved, and loaded again in that dtype; `loading.load_model` takes it
    of the weights as they are stored, whatever dtype they are then served in.
    """
    digest = hashlib.sha256(_canonical_config(model.config).encode())
    tensors = sorted((*model.named_parameters(), *_persistent_buffers(model)), key=lambda item: item[0])
    is_sampled = sum(tensor.nbytes for _, tensor in tensors) > full_hash_bytes
    for name, tensor in tensors:
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_sampled_bytes(tensor) if is_sampled else _all_bytes(tensor))
    return digest.hexdigest()[:16]


def quantized_hash(stored_hash: str, quantization: str) -> str:
    """What a model of that hash has, quantized: another one, since fusion modules see other states. The same on
    every device and in every dtype; ``stored_hash`` itself for no quantization."""
    if not quantization:
        return stored_hash
    return hashlib.sha256(f"{stored_hash}:{quantization}".encode()).hexdigest()[:16]


def tokenizer_hash(tokenizer_json: str) -> str:
    """SHA-256 (hex, 16 digits) of a tokenizer file's content, whatever its layout. Empty for none."""
    if not tokenizer_json:
        return ""
    canonical = json.dumps(json.loads(tokenizer_json), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _canonical_config(config: Any) -> str:
    def relevant(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {str(key): relevant(item) for key, item in value.items() if key not in _IRRELEVANT_KEYS}
            return {key: item for key, item in kept.items() if not key.startswith("_") and item is not None}
        return [relevant(item) for item in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(relevant(config.to_dict()), sort_keys=True, default=str)


def _persistent_buffers(model: Any) -> list[tuple[str, Tensor]]:
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _all_bytes(tensor: Tensor) -> Any:
    return _as_bytes(tensor).cpu().numpy().data if tensor.numel() else b""


def _sampled_bytes(tensor: Tensor) -> Any:
    raw = _as_bytes(tensor)
    if raw.numel() <= _CHUNKS_PER_TENSOR * _CHUNK_BYTES:
        return raw.cpu().numpy().data
    starts = [i * (raw.numel() - _CHUNK_BYTES) // (_CHUNKS_PER_TENSOR - 1) for i in range(_CHUNKS_PER_TENSOR)]
    return torch.cat([raw[start : start + _CHUNK_BYTES] for start in starts]).cpu().numpy().data
