"""Grafted layers on disk, alone or in a folder with their base model. Nothing read is ever executed.

A weight file holds the layers' tensors, their configuration and what the base model is like (family, width, depth,
vocabulary). ``.safetensors`` keeps the latter two as JSON in its metadata, ``.pt`` as plain dictionaries.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from braid_fusion.differences import differences
from braid_fusion.errors import CorruptWeights, GraftConfigError, UnknownWeights, WeightMismatch
from braid_fusion.resonance.config import FusionConfig
from braid_fusion.tensor_match import check_same_tensors
from braid_fusion.whole_file import write_whole

FORMAT = 1
WEIGHTS_FILE, CARD_FILE, BASE_FOLDER = "fusion_weights.safetensors", "fusion.json", "base"


class _Saved(NamedTuple):
    config: dict[str, Any]
    base: dict[str, Any]
    tensors: dict[str, Tensor]


def describe_base(base_model: Any) -> dict[str, Any]:
    """What grafted layers need to be the same of the model they are loaded onto."""
    text = base_model.config.get_text_config()
    return {
        "family": base_model.config.model_type,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_hidden_layers,
        "vocab_size": text.vocab_size,
    }


def save_weights(
    fusion_layers: nn.ModuleDict, config: FusionConfig, base_model: Any, path: Path | str
) -> None:
    """Write a weight file, whole or not at all; its kind is told by its name, ``.safetensors`` or ``.pt``.

    Raises: GraftConfigError for another name.
    """
    path = Path(path)
    suffix = _suffix(path)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in fusion_layers.state_dict().items()
    }
    plain, base = config.to_dict(), describe_base(base_model)
    if suffix == ".pt":
        file = io.BytesIO()
        torch.save({"format": FORMAT, "config": plain, "base": base, "tensors": tensors}, file)
        write_whole(path, file.getbuffer())
    else:
        metadata = {"format": str(FORMAT), "config": json.dumps(plain), "base": json.dumps(base)}
        write_whole(path, dump_tensors(tensors, metadata))


def load_weights(
    fusion_layers: nn.ModuleDict, config: FusionConfig, base_model: Any, path: Path | str
) -> None:
    """Put a weight file into layers that exist; after an error these are unchanged.

    Raises: UnknownWeights, CorruptWeights, GraftConfigError for a name of another kind, WeightMismatch if the file is
        of another configuration (the seed doesn't count) or another kind of base model.
    """
    path = Path(path)
    saved = _read(path)
    running = {"base": describe_base(base_model), "config": _plain(config.to_dict())}
    unlike = differences({"base": saved.base, "config": saved.config}, running, "this model")
    if unlike:
        raise WeightMismatch(f"{path}: weights of other grafted layers: {'; '.join(unlike)}")
    expected = fusion_layers.state_dict()
    check_same_tensors(path, saved.tensors, expected)
    for name, tensor in saved.tensors.items():
        wanted = expected[name]
        if tensor.is_floating_point() != wanted.is_floating_point():
            raise CorruptWeights(f"{path}: {name}: got {tensor.dtype}, expected {wanted.dtype}")
        if not bool(tensor.isfinite().all()):
            raise CorruptWeights(f"{path}: {name}: got NaN or infinity, expected finite numbers")
    fusion_layers.load_state_dict(saved.tensors)


def save_folder(
    fusion_layers: nn.ModuleDict, config: FusionConfig, base_model: Any, folder: Path | str, save_base: bool
) -> None:
    """Write the weight file, a card that says where the base model came from, and with ``save_base`` that model."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if save_base:
        base_model.save_pretrained(folder / BASE_FOLDER)
    save_weights(fusion_layers, config, base_model, folder / WEIGHTS_FILE)
    card = {
        "format": FORMAT,
        "config": config.to_dict(),
        "base_model": str(getattr(base_model, "name_or_path", "")),
        "base_is_here": save_base,
    }
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def open_folder(
    folder: Path | str, base_model: Any, base_options: Mapping[str, Any]
) -> tuple[FusionConfig, Any]:
    """The configuration in a folder, and the base model, loaded unless it is given.

    Raises: UnknownWeights, CorruptWeights, GraftConfigError.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if not path.is_file():
        raise UnknownWeights(f"no {CARD_FILE} in {folder}: expected a folder that save_pretrained wrote")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise CorruptWeights(f"{path}: got format {card['format']!r}, expected {FORMAT}")
        config = FusionConfig.from_dict(card["config"])
        name, is_here = str(card["base_model"]), bool(card["base_is_here"])
    except (OSError, ValueError, KeyError, TypeError, GraftConfigError) as error:
        raise CorruptWeights(
            f"{path}: not a card of grafted layers: {type(error).__name__}: {error}"
        ) from error
    if base_model is None:
        if not is_here and not name:
            raise GraftConfigError(f"{path}: says no base model, expected one as base_model=")
        from transformers import AutoModelForCausalLM

        source = folder / BASE_FOLDER if is_here else name
        base_model = AutoModelForCausalLM.from_pretrained(source, **base_options)
    return config, base_model


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON makes of a configuration or description, without the seed."""
    return {key: value for key, value in json.loads(json.dumps(values)).items() if key != "seed"}


def _suffix(path: Path) -> str:
    if path.suffix not in (".safetensors", ".pt"):
        raise GraftConfigError(
            f"{path}: got a file name that ends in {path.suffix!r}, expected .safetensors or .pt"
        )
    return path.suffix


def _read(path: Path) -> _Saved:
    suffix = _suffix(path)
    if not path.is_file():
        raise UnknownWeights(f"{path}: no such file")
    try:
        return _read_pt(path) if suffix == ".pt" else _read_safetensors(path)
    except CorruptWeights:
        raise
    except Exception as error:  # a damaged file may fail anywhere in its reader
        raise CorruptWeights(
            f"{path}: not a file of grafted layers: {type(error).__name__}: {error}"
        ) from error


def _read_safetensors(path: Path) -> _Saved:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        _check_format(path, int(metadata["format"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    return _Saved(_plain(json.loads(metadata["config"])), _plain(json.loads(metadata["base"])), tensors)


def _read_pt(path: Path) -> _Saved:
    content = torch.load(path, map_location="cpu", weights_only=True)
    _check_format(path, content["format"])
    tensors = dict(content["tensors"])
    strange = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if strange:
        raise CorruptWeights(
            f"{path}: {strange[0]}: got a {type(tensors[strange[0]]).__name__}, expected a tensor"
        )
    return _Saved(_plain(content["config"]), _plain(content["base"]), tensors)


def _check_format(path: Path, found: object) -> None:
    if found != FORMAT:
        raise CorruptWeights(f"{path}: got format {found!r}, expected {FORMAT}")
