"""Trained modules on disk: one folder per version, with ``weights.safetensors`` and ``card.json``. No pickle.

The card says which plan, shards and tokenizers the weights belong to; loading them under others is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from braid_fusion.differences import differences
from braid_fusion.errors import CorruptWeights, NotAVersion, UnknownWeights, WeightMismatch
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_fusion.tensor_match import check_same_tensors

logger = logging.getLogger(__name__)

CARD_FORMAT = 1
WEIGHTS_FILE, CARD_FILE = "weights.safetensors", "card.json"


@dataclass(frozen=True)
class WeightCard:
    """What a version of weights was made for and from. ``raw`` is the whole card."""

    version: str
    plan: BraidPlan
    weights_sha256: str
    created_unix_s: float
    raw: Mapping[str, Any]


def save_stack(
    stack: FusionStack, folder: Path | str, training_record: Mapping[str, Any] | None = None
) -> WeightCard:
    """Write a version; ``folder`` is the version's own and must not exist yet or be a version to overwrite.

    The folder appears complete or not at all. ``training_record`` is anything that JSON can hold.
    Raises: NotAVersion, with nothing touched, if something else is there.
    """
    folder = Path(folder)
    _refuse_what_is_no_version(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stack.state_dict().items()}
    data = dump_tensors(tensors)
    plan = stack.plan
    raw = {
        "format": CARD_FORMAT,
        "braid_version": _braid_version(),
        "created_unix_s": time.time(),
        "plan_hash": plan.hash(),
        "plan": json.loads(plan.to_json()),
        "shard_hashes": {shard.name: shard.model_hash for shard in plan.shards},
        "tokenizer_hashes": {shard.name: shard.tokenizer_hash for shard in plan.shards},
        "num_parameters": stack.num_parameters(),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "training": dict(training_record or {}),
    }
    text = json.dumps(raw, indent=2, sort_keys=True) + "\n"
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (building / WEIGHTS_FILE).write_bytes(data)
        (building / CARD_FILE).write_text(text, encoding="utf-8")
        building.chmod(0o755)
        _put_in_place(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return read_card(folder)


def _refuse_what_is_no_version(folder: Path) -> None:
    if folder.name in ("", ".."):
        raise NotAVersion(f"weights: got {str(folder)!r}, expected a path that ends in a version's name")
    if not folder.is_dir() or folder.is_symlink():
        if os.path.lexists(folder):
            raise NotAVersion(f"weights: {folder} is no folder, expected a version or nothing there")
        return
    others = sorted(path.name for path in folder.iterdir() if path.name not in (WEIGHTS_FILE, CARD_FILE))
    if others:
        raise NotAVersion(
            f"weights: {folder} holds {others[0]!r} ({len(others)} such in all), expected nothing there or a "
            f"version to overwrite, with {WEIGHTS_FILE} and {CARD_FILE} alone"
        )


def _put_in_place(building: Path, folder: Path) -> None:
    """Rename ``building`` to ``folder``; a version that is there steps aside first and comes back on failure."""
    if not folder.exists():
        os.replace(building, folder)
        return
    aside = building.with_name(f"{building.name}.old")
    os.replace(folder, aside)
    try:
        os.replace(building, folder)
    except OSError:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside)


def read_card(folder: Path | str) -> WeightCard:
    """The card of a version. Raises: UnknownWeights if there is none, CorruptWeights if it can't be read."""
    folder = Path(folder)
    path = folder / CARD_FILE
    if not path.is_file():
        raise UnknownWeights(f"weights {folder.name!r}: no {CARD_FILE} in {folder}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != CARD_FORMAT:
            raise CorruptWeights(f"{path}: got card format {raw['format']!r}, expected {CARD_FORMAT}")
        plan = BraidPlan.from_json(json.dumps(raw["plan"]))
        return WeightCard(folder.name, plan, str(raw["weights_sha256"]), float(raw["created_unix_s"]), raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptWeights(f"{path}: not a weight card: {type(error).__name__}: {error}") from error


def list_versions(folder: Path | str) -> list[WeightCard]:
    """All versions in a folder, the oldest first. Folders without a card, or whose card can't be read, are
    passed over; the latter are logged."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    cards = []
    for path in folder.glob(f"[!.]*/{CARD_FILE}"):
        try:
            cards.append(read_card(path.parent))
        except (CorruptWeights, UnknownWeights) as error:  # damaged, or gone since it was listed
            logger.warning("version passed over: %s", error)
    return sorted(cards, key=lambda card: (card.created_unix_s, card.version))


def load_stack(plan: BraidPlan, folder: Path | str) -> FusionStack:
    """Modules of ``plan`` with the weights of a version.

    Raises: UnknownWeights, CorruptWeights, PlanError, WeightMismatch (names each field that differs).
    """
    stack = FusionStack(plan)
    load_weights(stack, folder)
    return stack


def load_weights(stack: FusionStack, folder: Path | str) -> WeightCard:
    """Put the weights of a version into modules that exist; after an error these are unchanged.

    Raises: as `load_stack`.
    """
    folder = Path(folder)
    card = read_card(folder)
    unlike = plan_differences(card.plan, stack.plan)
    if unlike:
        raise WeightMismatch(f"weights {card.version!r} were made for another braid: {'; '.join(unlike)}")
    tensors = _read_tensors(folder / WEIGHTS_FILE, card.weights_sha256)
    check_same_tensors(folder / WEIGHTS_FILE, tensors, stack.state_dict())
    stack.load_state_dict(tensors)
    return card


def plan_differences(saved: BraidPlan, running: BraidPlan) -> list[str]:
    """Each field in which two plans differ, with both values. The seed doesn't count."""
    return differences(_plain(saved), _plain(running), "this braid")


def _plain(plan: BraidPlan) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    del raw["seed"]
    return raw


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptWeights(f"{path}: cannot be read: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CorruptWeights(f"{path}: got SHA-256 {found[:16]}…, expected {sha256[:16]}… as its card says")
    try:
        tensors: dict[str, Tensor] = load_tensors(data)
    except (SafetensorError, ValueError) as error:
        raise CorruptWeights(f"{path}: not a safetensors file: {error}") from error
    return tensors


def _braid_version() -> str:
    try:
        return metadata.version("braid")
    except metadata.PackageNotFoundError:
        return "not installed"
