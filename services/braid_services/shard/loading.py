"""Finding a causal language model and its tokenizer, in a local folder or on a hub. Runs neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from braid_rpc.cards import ChatFormat
from braid_rpc.errors import ConfigError, CorruptWeightsError, UnknownModelError, UnsupportedModelError
from braid_services.shard.config import ShardConfig
from braid_services.shard.fingerprint import model_hash, quantized_hash
from braid_services.shard.quantization import canonical, check_possible, recipe, settle, stored_quantization

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def load_model(config: ShardConfig) -> tuple[Any, Any, str]:
    """The model, on its device in its dtype; its tokenizer (None if it has none); and its hash, which is of
    the weights as they are stored: the same whatever dtype they are served in, another one if quantized.

    Raises: UnknownModelError if there is no such model; CorruptWeightsError if its files are damaged or lack
    tensors; UnsupportedModelError if it is no causal language model; ConfigError for a wrong dtype, device or
    quantization.
    """
    where = f"shard {config.name!r}, model {config.model!r}"
    dtype, device, quantization = _dtype(config), _device(config), canonical(config.quantization)
    if quantization:
        check_possible(quantization, device, where)
    _refuse_missing_folder(config.model, where)
    source = str(Path(config.model).expanduser()) if config.model.startswith("~") else config.model
    model = _pretrained(source, where, dtype="auto")
    stored_hash, stored = model_hash(model), stored_quantization(model)
    if stored and quantization:
        raise ConfigError(
            f"{where}: quantization: got {quantization!r}, but the model is stored as {stored!r} already, "
            "expected none"
        )
    # From disk once more rather than converted: the library knows which tensors keep their precision.
    if stored or quantization:
        del model
        how = {"quantization_config": recipe(quantization, dtype)} if quantization else {}
        model = _pretrained(source, where, dtype=dtype, device_map={"": device}, **how)
        if stored_quantization(model) in ("int8", "nf4", "fp4"):
            settle(model, where)
    elif model.dtype != dtype:
        del model
        model = _pretrained(source, where, dtype=dtype).to(device)
    else:
        model = model.to(device)
    return model, load_tokenizer(source, where), quantized_hash(stored_hash, quantization)


def _pretrained(name: str, where: str, **how: Any) -> Any:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **how
        )
    except OSError as error:
        raise UnknownModelError(f"{where}: no such model here or on the hub: {_first_line(error)}") from error
    except SafetensorError as error:
        raise CorruptWeightsError(f"{where}: cannot read the weights: {_first_line(error)}") from error
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UnsupportedModelError(f"{where}: not a causal language model: {_first_line(error)}") from error
    missing = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind) or ())
    if missing:
        raise CorruptWeightsError(f"{where}: the weights lack {len(missing)} tensors, such as {missing[0]}")
    return model


def load_tokenizer(model: str, where: str) -> Any:
    """The tokenizer that belongs to a model; None if there is none."""
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if (
            Path(model).is_dir()
            and not any(Path(model).glob("*token*"))
            and not any(Path(model).glob("vocab*"))
        ):
            return None
        raise UnsupportedModelError(f"{where}: cannot read the tokenizer: {_first_line(error)}") from error


def fast_tokenizer(tokenizer: Any, where: str) -> Tokenizer | None:
    """The `tokenizers.Tokenizer` inside, a copy that neither truncates nor pads. None for None."""
    if tokenizer is None:
        return None
    inner = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise UnsupportedModelError(
            f"{where}: {type(tokenizer).__name__} is no tokenizer of the tokenizers library"
        )
    copy = Tokenizer.from_str(inner.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def chat_format(tokenizer: Any) -> ChatFormat:
    """A tokenizer's chat template (the default one of several) with the special tokens that it may name."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    tokens = getattr(tokenizer, "special_tokens_map", {})
    return ChatFormat(
        template if isinstance(template, str) else "",
        {name: token for name, token in tokens.items() if isinstance(token, str)},
    )


def eos_token_ids(model: Any) -> tuple[int, ...]:
    """The ids that end a text, as the model's generation settings or configuration have them."""
    for source in (getattr(model, "generation_config", None), model.config.get_text_config()):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)
    return ()


def context_length(model: Any, windows: Sequence[int | None]) -> int:
    """The most tokens a session may hold. ``windows``: what each layer asked for when it called attention.

    Rotary tables that change with the longest text in the batch would let sessions influence each other, so a
    model with such tables is kept to the length below which they do not change. Models that put a window or
    chunks into their mask alone, which packed attention never sees, are kept to the length of one.
    """
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int) or length < 1:
        raise UnsupportedModelError(f"{config.model_type}: its config has no max_position_embeddings")
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        if rope.get("rope_type") == "longrope":
            length = min(length, int(rope.get("original_max_position_embeddings") or length))
    return min([length, *_masked_windows(config, windows)])


def _masked_windows(config: Any, windows: Sequence[int | None]) -> list[int]:
    """The windows and chunks in the configuration that layers do not ask for themselves."""
    sliding, chunk = (getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size"))
    of_type = {"full_attention": (), "sliding_attention": (sliding,), "chunked_attention": (chunk,)}
    types = getattr(config, "layer_types", None) or [""] * len(windows)
    return [
        size
        for kind, window in zip(types, windows, strict=False)
        for size in of_type.get(kind, (sliding, chunk))
        if window is None and isinstance(size, int) and size > 0
    ]


def _dtype(config: ShardConfig) -> torch.dtype:
    if config.dtype not in DTYPES:
        raise ConfigError(
            f"shard {config.name!r}: dtype: got {config.dtype!r}, expected one of {', '.join(DTYPES)}"
        )
    return DTYPES[config.dtype]


def _device(config: ShardConfig) -> torch.device:
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"shard {config.name!r}: device: got {config.device!r}, which is not there: {_first_line(error)}"
        ) from error
    return device


def _refuse_missing_folder(model: str, where: str) -> None:
    path = Path(model).expanduser()
    looks_like_a_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_a_path and not path.is_dir():
        raise UnknownModelError(f"{where}: no such folder: {path}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UnknownModelError(
            f"{where}: the folder has no config.json, expected a model in the Hugging Face layout"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
