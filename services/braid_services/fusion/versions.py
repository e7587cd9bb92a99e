"""Which versions of the weights there are, which are loaded, and which one new sessions get.

Knows folders and modules, no sessions. Loaded modules are never changed, so whoever holds them keeps them.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from braid_fusion.errors import CorruptWeights, UnknownWeights
from braid_fusion.packed_weights import PackedWeights, WeightCard, max_packed_bytes, unpack_into
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_fusion.weights import list_versions, load_weights, read_card, read_card_text, write_version
from braid_rpc.errors import ConflictError, StorageError, UnknownVersionError
from braid_services.fusion.loaded import Loaded, LoadedStacks
from braid_services.fusion.translation import braid_errors
from braid_services.fusion.version_names import UNTRAINED, is_folder_name
from braid_services.trimming import trim

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version; ``card_json`` is what its weights were saved with, ``{}`` for the untrained one. One that is
    ``in_memory_only`` is gone with this process."""

    version: str
    card_json: str
    loaded: bool
    active: bool
    in_memory_only: bool = False


class Versions:
    """The versions of one plan's weights: those in a folder, those that were published where there is none, and
    ``untrained``, which is always there."""

    def __init__(self, plan: BraidPlan, folder: Path | None, version: str | None) -> None:
        """Load ``version``; None: the newest in ``folder``, or untrained if there is no folder.

        Raises: ConfigError for a plan that can't be built, UnknownVersionError, WeightMismatchError,
            CorruptWeightsError.
        """
        self.plan = plan
        self._folder = folder
        self._stacks = LoadedStacks()
        self._publishing = threading.Lock()
        self.active = self._beginning = self._first(version)
        self.max_packed_bytes = max_packed_bytes(self.load(self.active))

    @classmethod
    def of(cls, stack: FusionStack, version: str, folder: Path | None = None) -> Versions:
        """Modules that exist already, as the active version. They are used as they are, also while they change."""
        versions = cls.__new__(cls)
        versions.plan = stack.plan
        versions._folder = folder
        versions._stacks = LoadedStacks()
        versions._publishing = threading.Lock()
        versions.active = versions._beginning = version
        versions._stacks.put(version, Loaded(stack))
        versions.max_packed_bytes = max_packed_bytes(stack)
        return versions

    @property
    def loaded(self) -> tuple[str, ...]:
        """Versions in memory."""
        return self._stacks.names()

    @property
    def in_memory_only(self) -> bool:
        """Whether there is no folder that versions could be kept in."""
        return self._folder is None

    def stack(self, version: str) -> FusionStack:
        """The modules of a version, loaded if need be. Raises: as the constructor."""
        found = self._stacks.use(version)
        return self.load(version) if found is None else found

    def load(self, version: str) -> FusionStack:
        """Read a version, again if it is loaded already: sessions from now on get what is on disk now. One that was
        published into memory stays as it is.

        Raises: as the constructor.
        """
        held = self._stacks.peek(version)
        if held is not None and held.card_json is not None:
            return held.stack
        sha256 = None
        with braid_errors():
            path = None if version == UNTRAINED else self._path(version)
            stack = FusionStack(self.plan)
            if path is not None:
                sha256 = load_weights(stack, path).weights_sha256
        self._keep(version, Loaded(stack, sha256))
        return stack

    def activate(self, version: str) -> None:
        """New sessions get this version, as it is on disk now. Nothing changes after an error.

        Raises: as the constructor.
        """
        if self._is_overwritten(version):
            self.load(version)
        else:
            self.stack(version)
        self.active = version

    def holds(self, card: WeightCard, card_json: str) -> bool:
        """Whether this very version is there. Raises: ConflictError if another one of its name is."""
        there = self._card_there(card.version)
        if there == card_json:
            return True
        loaded = self._stacks.peek(card.version)
        is_free = there is None and card.version != UNTRAINED
        # What was loaded from a folder that is gone since is the same version or none.
        if is_free and (loaded is None or loaded.sha256 == card.weights_sha256):
            return False
        raise ConflictError(
            f"version: got {card.version!r}, which is there already with another card or other weights; expected a "
            "name that is free, or none"
        )

    def publish(self, card: WeightCard, weights: PackedWeights, *, activate: bool) -> None:
        """Take in a new version: verified, then written whole or not at all, then loaded, and only then activated.
        The same version again is harmless.

        Raises: ConflictError if another one of its name is there; StorageError; of the weights themselves
            `WeightMismatch` and `CorruptWeights`. After any of them all is as it was.
        """
        with self._publishing:
            if self.holds(card, weights.card_json):
                if activate:
                    self.activate(card.version)
                return
            stack = FusionStack(self.plan)
            unpack_into(stack, card, weights.data, "weights")
            if self._folder is not None:
                self._write(self._folder, card, weights)
            card_json = weights.card_json if self.in_memory_only else None
            loaded = Loaded(stack, card.weights_sha256, card_json, card.created_unix_s)
            self._keep(card.version, loaded)
            if activate:
                self.active = card.version

    def list(self) -> list[VersionInfo]:
        """All versions, the oldest first; those whose card can't be read are passed over."""
        loaded, active = self.loaded, self.active
        infos = [VersionInfo(UNTRAINED, "{}", UNTRAINED in loaded, active == UNTRAINED)]
        on_disk = self._cards()
        found = {name: self._stacks.peek(name) for name in loaded if name not in {UNTRAINED, *on_disk}}
        held = {name: one for name, one in found.items() if one is not None}
        infos += [
            VersionInfo(name, held[name].card_json or "{}", True, active == name, in_memory_only=True)
            for name in sorted(held, key=lambda name: (held[name].created_unix_s, name))
        ]
        return infos + [
            VersionInfo(name, card, name in loaded, active == name) for name, card in on_disk.items()
        ]

    def _keep(self, version: str, loaded: Loaded) -> None:
        loaded.stack.eval()
        trim(loaded.stack)
        self._stacks.put(version, loaded, keep=(self.active, self._beginning))

    def _card_there(self, version: str) -> str | None:
        """A version's card, byte for byte; "" for a folder without one; None: there is nothing of that name."""
        if self._folder is not None and os.path.lexists(self._folder / version):
            try:
                return read_card_text(self._folder / version)
            except (CorruptWeights, UnknownWeights):
                return ""
        held = self._stacks.peek(version)
        return None if held is None else held.card_json

    def _write(self, folder: Path, card: WeightCard, weights: PackedWeights) -> None:
        try:
            write_version(folder / card.version, weights)
        except OSError as error:
            # Another service with this folder may have been faster.
            if isinstance(error, FileExistsError) and self.holds(card, weights.card_json):
                return
            raise StorageError(f"version {card.version!r} cannot be written to {folder}: {error}") from error

    def _is_overwritten(self, version: str) -> bool:
        """Whether a version that was loaded from disk has other weights there now; one that is gone has not."""
        held = self._stacks.peek(version)
        sha256 = None if held is None else held.sha256
        if sha256 is None or self._folder is None or not (self._folder / version).is_dir():
            return False
        with braid_errors():
            return read_card(self._folder / version).weights_sha256 != sha256

    def _first(self, version: str | None) -> str:
        if version is not None:
            return version
        if self._folder is None:
            return UNTRAINED
        if not self._folder.is_dir():
            raise UnknownVersionError(f"weights: no folder {self._folder}, expected one that holds versions")
        on_disk = list(self._cards())
        if not on_disk:
            logger.warning(
                "no versions of fusion weights in %s: the fusion modules are untrained", self._folder
            )
            return UNTRAINED
        return on_disk[-1]

    def _cards(self) -> dict[str, str]:
        if self._folder is None:
            return {}
        cards = {card.version: json.dumps(card.raw) for card in list_versions(self._folder)}
        cards.pop(UNTRAINED, None)  # that name is of the modules as they are before any training
        return cards

    def _known(self) -> str:
        return ", ".join(info.version for info in self.list())

    def _path(self, version: str) -> Path:
        if self._folder is None:
            raise UnknownVersionError(
                f"version: got {version!r}, expected one of {self._known()}: there is no weights folder"
            )
        if not is_folder_name(version):
            raise UnknownVersionError(
                f"version: got {version!r}, expected the name of a folder in {self._folder}"
            )
        path = self._folder / version
        if not path.is_dir():
            raise UnknownVersionError(
                f"version: got {version!r}, expected one of {self._known()} (in {self._folder})"
            )
        return path
