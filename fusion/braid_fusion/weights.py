"""Trained modules on disk: one folder per version, with ``weights.safetensors`` and ``card.json``.

What stands in these files is `packed_weights`' to say; here is how a folder of them comes to be and is found.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from braid_fusion.errors import CorruptWeights, NotAVersion, UnknownWeights
from braid_fusion.packed_weights import (
    PackedWeights,
    WeightCard,
    check_plan,
    pack_stack,
    parse_card,
    unpack_into,
)
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_fusion.whole_file import sync_folder, write_whole

logger = logging.getLogger(__name__)

WEIGHTS_FILE, CARD_FILE = "weights.safetensors", "card.json"


def save_stack(
    stack: FusionStack, folder: Path | str, training_record: Mapping[str, Any] | None = None
) -> WeightCard:
    """Write a version; ``folder`` is the version's own and must not exist yet or be a version to overwrite.

    The folder appears complete or not at all. ``training_record`` is anything that JSON can hold.
    Raises: NotAVersion, with nothing touched, if something else is there; OSError, such as for a full disk.
    """
    folder = Path(folder)
    refuse_what_is_no_version(folder)
    write_version(folder, pack_stack(stack, training_record), overwrite=True)
    return read_card(folder)


def write_version(folder: Path, weights: PackedWeights, *, overwrite: bool = False) -> None:
    """Write a version as it is, byte for byte; ``folder`` is its own and appears complete or not at all.

    Raises: FileExistsError if something is there and is not to be overwritten; OSError, such as for a full disk.
        After any of them all is as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".new-version-", dir=folder.parent))
    try:
        write_whole(building / WEIGHTS_FILE, weights.data)
        write_whole(building / CARD_FILE, weights.card_json.encode())
        building.chmod(0o755)
        if overwrite:
            _put_in_place(building, folder)
        else:
            _put_beside_others(building, folder)
        with contextlib.suppress(
            OSError
        ):  # it is there for all to see; whether for good, nobody could tell now
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def refuse_what_is_no_version(folder: Path) -> None:
    """Raises: NotAVersion if something is there that is no version, which `save_stack` would destroy."""
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


def _put_beside_others(building: Path, folder: Path) -> None:
    """Rename ``building`` to ``folder``, where nothing may be: of two who do it at once, one gets the error."""
    try:
        os.rename(building, folder)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, "there is something already", str(folder)) from error
        raise


def read_card(folder: Path | str) -> WeightCard:
    """The card of a version. Raises: UnknownWeights if there is none, CorruptWeights if it can't be read."""
    folder = Path(folder)
    return parse_card(folder.name, read_card_text(folder), str(folder / CARD_FILE))


def read_packed(folder: Path | str) -> PackedWeights:
    """A version's bytes as they are; whether they fit together `unpack_into` finds out.

    Raises: UnknownWeights if there is no card, CorruptWeights for what can't be read.
    """
    folder = Path(folder)
    card_json = read_card_text(folder)
    try:
        return PackedWeights(card_json, (folder / WEIGHTS_FILE).read_bytes())
    except OSError as error:
        raise CorruptWeights(f"{folder / WEIGHTS_FILE}: cannot be read: {error}") from error


def read_card_text(folder: Path) -> str:
    """The text of a version's card, byte for byte. Raises: as `read_card`."""
    path = folder / CARD_FILE
    if not path.is_file():
        raise UnknownWeights(f"weights {folder.name!r}: no {CARD_FILE} in {folder}")
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
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
    check_plan(card, stack.plan)  # before the weights are read: they may be large
    unpack_into(stack, card, read_packed(folder).data, str(folder / WEIGHTS_FILE))
    return card
