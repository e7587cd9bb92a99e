"""A classifier on disk: a folder with ``weights.safetensors`` and ``card.json``. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from braid_fusion.deciding.classifier import DecisionClassifier
from braid_fusion.errors import CorruptWeights, DeciderError, NotAVersion, UnknownWeights
from braid_fusion.weights import CARD_FILE, WEIGHTS_FILE
from braid_fusion.whole_file import write_whole

KIND, FORMAT = "decision classifier", 1


def save_classifier(
    classifier: DecisionClassifier, folder: Path | str, training_record: Mapping[str, Any] | None = None
) -> None:
    """Write a classifier. The card comes last and names the weights' SHA-256, so that half of it is never read as
    whole. ``training_record`` is anything that JSON can hold.

    Raises: NotAVersion, with nothing touched, if something else than a classifier is there.
    """
    folder = Path(folder)
    check_classifier_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    data = dump_tensors(tensors)
    card = {
        "kind": KIND,
        "format": FORMAT,
        "answerers": list(classifier.answerers),
        "num_features": classifier.num_features,
        "margin": classifier.margin,
        "shard_hashes": classifier.model_hashes,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "training": dict(training_record or {}),
    }
    write_whole(folder / WEIGHTS_FILE, data)
    write_whole(folder / CARD_FILE, (json.dumps(card, indent=2, sort_keys=True) + "\n").encode())


def check_classifier_folder(folder: Path) -> None:
    """That a classifier may be written there. Raises: NotAVersion if something else than a classifier is there."""
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if folder.exists() and (not folder.is_dir() or set(others) - {WEIGHTS_FILE, CARD_FILE}):
        raise NotAVersion(f"classifier: {folder} holds something else, expected nothing or a classifier")
    if CARD_FILE in others:
        read_classifier_card(folder)


def load_classifier(folder: Path | str) -> DecisionClassifier:
    """Read what `save_classifier` wrote. Raises: UnknownWeights if nothing is there, CorruptWeights."""
    folder = Path(folder)
    card = read_classifier_card(folder)
    try:
        data = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise CorruptWeights(f"{folder / WEIGHTS_FILE}: cannot be read: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != card["weights_sha256"]:
        raise CorruptWeights(
            f"{folder / WEIGHTS_FILE}: got SHA-256 {found[:16]}…, expected {card['weights_sha256'][:16]}…"
        )
    try:
        classifier = DecisionClassifier(
            card["answerers"], card["num_features"], margin=card["margin"], model_hashes=card["shard_hashes"]
        )
        classifier.load_state_dict(load_tensors(data))
    except (SafetensorError, RuntimeError, DeciderError) as error:
        raise CorruptWeights(f"{folder}: not what its card says: {error}") from error
    return classifier.eval()


def read_classifier_card(folder: Path | str) -> dict[str, Any]:
    """The card of a classifier. Raises: as `load_classifier`."""
    path = Path(folder) / CARD_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnknownWeights(f"classifier: no {CARD_FILE} in {folder}") from None
    except (OSError, ValueError) as error:
        raise CorruptWeights(f"{path}: cannot be read: {error}") from error
    types = {
        "answerers": list,
        "num_features": int,
        "margin": int | float,
        "shard_hashes": dict,
        "weights_sha256": str,
    }
    if not isinstance(card, dict) or card.get("kind") != KIND or card.get("format") != FORMAT:
        raise CorruptWeights(f"{path}: not the card of a {KIND} of format {FORMAT}")
    wrong = sorted(name for name, kind in types.items() if not isinstance(card.get(name), kind))
    if wrong:
        raise CorruptWeights(f"{path}: missing or of a wrong type: {', '.join(wrong)}")
    return card
