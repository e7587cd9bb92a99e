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

from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_fusion.weights import list_versions, load_weights, read_card
from braid_rpc.errors import UnknownVersionError
from braid_services.fusion.translation import braid_errors
from braid_services.trimming import trim

UNTRAINED = "untrained"
MAX_NAME_BYTES = 255
"""Of one name in a path, on Linux's file systems."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version; ``card_json`` is what its weights were saved with, ``{}`` for the untrained one."""

    version: str
    card_json: str
    loaded: bool
    active: bool


class Versions:
    """The versions of one plan's weights: those in a folder, and ``untrained``, which is always there."""

    def __init__(self, plan: BraidPlan, folder: Path | None, version: str | None) -> None:
        """Load ``version``; None: the newest in ``folder``, or untrained if there is no folder.

        Raises: ConfigError for a plan that can't be built, UnknownVersionError, WeightMismatchError,
            CorruptWeightsError.
        """
        self.plan = plan
        self._folder = folder
        self._loaded: dict[str, FusionStack] = {}
        self._sha256: dict[str, str] = {}  # of what was loaded from disk
        self._lock = threading.Lock()
        self.active = self._first(version)
        self.load(self.active)

    @classmethod
    def of(cls, stack: FusionStack, version: str, folder: Path | None = None) -> Versions:
        """Modules that exist already, as the active version. They are used as they are, also while they change."""
        versions = cls.__new__(cls)
        versions.plan = stack.plan
        versions._folder = folder
        versions._loaded = {version: stack}
        versions._sha256 = {}
        versions._lock = threading.Lock()
        versions.active = version
        return versions

    @property
    def loaded(self) -> tuple[str, ...]:
        """Versions in memory."""
        with self._lock:
            return tuple(self._loaded)

    def stack(self, version: str) -> FusionStack:
        """The modules of a version, loaded if need be. Raises: as the constructor."""
        with self._lock:
            found = self._loaded.get(version)
        return self.load(version) if found is None else found

    def load(self, version: str) -> FusionStack:
        """Read a version, again if it is loaded already: sessions from now on get what is on disk now.

        Raises: as the constructor.
        """
        sha256 = {}
        with braid_errors():
            path = None if version == UNTRAINED else self._path(version)
            stack = FusionStack(self.plan)
            if path is not None:
                sha256[version] = load_weights(stack, path).weights_sha256
        stack.eval()
        trim(stack)
        with self._lock:
            self._loaded[version] = stack
            self._sha256.update(sha256)
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

    def list(self) -> list[VersionInfo]:
        """All versions, the oldest first; those whose card can't be read are passed over."""
        loaded, active = self.loaded, self.active
        infos = [VersionInfo(UNTRAINED, "{}", UNTRAINED in loaded, active == UNTRAINED)]
        on_disk = self._cards()
        infos += [
            VersionInfo(name, "{}", True, active == name)
            for name in loaded
            if name not in {UNTRAINED, *on_disk}
        ]
        return infos + [
            VersionInfo(name, card, name in loaded, active == name) for name, card in on_disk.items()
        ]

    def _is_overwritten(self, version: str) -> bool:
        """Whether a version that was loaded from disk has other weights there now; one that is gone has not."""
        with self._lock:
            held = self._sha256.get(version)
        if held is None or self._folder is None or not (self._folder / version).is_dir():
            return False
        with braid_errors():
            return read_card(self._folder / version).weights_sha256 != held

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
        return {card.version: json.dumps(card.raw) for card in list_versions(self._folder)}

    def _path(self, version: str) -> Path:
        if self._folder is None:
            raise UnknownVersionError(
                f"version: got {version!r}, expected {UNTRAINED!r}: there is no weights folder"
            )
        is_name = version and not version.startswith(".") and Path(version).name == version
        if not is_name or len(os.fsencode(version)) > MAX_NAME_BYTES:
            raise UnknownVersionError(
                f"version: got {version!r}, expected the name of a folder in {self._folder}"
            )
        path = self._folder / version
        if not path.is_dir():
            known = ", ".join([UNTRAINED, *self._cards()])
            raise UnknownVersionError(
                f"version: got {version!r}, expected one of {known} (in {self._folder})"
            )
        return path
