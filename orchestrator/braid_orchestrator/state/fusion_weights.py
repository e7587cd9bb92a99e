"""Published weights in a store, so that orchestrators whose fusion modules are apart get what one of them took in.

Beside a record for each version lie its bytes, in chunks. There they stay until newer ones are published: whoever
starts later finds the active version. Knows no modules.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection
from typing import Any

from braid_orchestrator.state.codec import pack, unpack_record
from braid_orchestrator.state.store import StateStore
from braid_rpc.errors import BraidError, ConflictError, CorruptStateError

_RECORDS, _CHUNKS = "fusion-weights", "fusion-weights-chunks"
_FIELDS = {"card": str, "sha256": str, "num_bytes": int, "offered_unix_s": float}
_CHUNK_BYTES = 4 * 2**20
_MAX_BYTES = 2**36  # no weights have more; a record that says so is none
# Beside the active one: with two of them, orchestrators that publish at once don't remove each other's.
_NUM_KEPT = 2


class FusionWeights:
    """The versions in a store. Every call raises UnavailableError if the store does not answer."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def offer(self, version: str, card_json: str, data: bytes, keep: Collection[str]) -> bool:
        """Put a version there, and take older ones out but for those to ``keep``; whether it is new there.

        Raises: ConflictError if another version of this name is there.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        record = {"card": card_json, "sha256": sha256, "num_bytes": len(data), "offered_unix_s": time.time()}
        # The record claims the name; until the last chunk is there, nobody was told to look for it.
        is_new = self._store.swap(_RECORDS, version, None, pack(record))
        if not is_new:
            there = self._record(version)
            if there is not None and (there["card"], there["sha256"]) != (card_json, sha256):
                raise ConflictError(
                    f"version: got {version!r}, which another orchestrator published with another card or other "
                    "weights; expected a name that is free, or none"
                )
        for key, start in _chunks(version, len(data)):
            self._store.put(_CHUNKS, key, data[start : start + _CHUNK_BYTES])
        self._prune({version, *keep})
        return is_new

    def fetch(self, version: str) -> tuple[str, bytes] | None:
        """Card and weights of a version; None if they aren't there, or not yet. Raises: CorruptStateError."""
        record = self._record(version)
        if record is None:
            return None
        chunks = [self._store.get(_CHUNKS, key) for key, _ in _chunks(version, record["num_bytes"])]
        data = b"".join(chunk for chunk in chunks if chunk is not None)
        if None in chunks:
            return None
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise CorruptStateError(
                f"state store: weights of version {version!r}: got {len(data)} bytes that are not their record's"
            )
        return record["card"], data

    def withdraw(self, version: str) -> None:
        """Take a version out."""
        try:
            record = self._record(version)
        except CorruptStateError:
            record = None
        self._store.remove(_RECORDS, [version])
        if record is not None:
            self._store.remove(_CHUNKS, [key for key, _ in _chunks(version, record["num_bytes"])])

    def _record(self, version: str) -> dict[str, Any] | None:
        value = self._store.get(_RECORDS, version)
        if value is None:
            return None
        what = f"weights of version {version!r}"
        record = unpack_record(value, _FIELDS, what)
        if not 0 <= record["num_bytes"] <= _MAX_BYTES:
            raise CorruptStateError(
                f"state store: {what}: got num_bytes {record['num_bytes']}, expected at most {_MAX_BYTES}"
            )
        return record

    def _prune(self, keep: Collection[str]) -> None:
        offered: dict[str, float] = {}
        for version, value in self._store.items(_RECORDS).items():
            try:
                offered[version] = unpack_record(value, _FIELDS, version)["offered_unix_s"]
            except BraidError:
                offered[version] = 0.0
        newest = sorted(offered, key=lambda version: offered[version])[-_NUM_KEPT:]
        for version in offered:
            if version not in keep and version not in newest:
                self.withdraw(version)


def _chunks(version: str, num_bytes: int) -> list[tuple[str, int]]:
    """Key and first byte of each chunk."""
    return [(f"{version}:{index}", start) for index, start in enumerate(range(0, num_bytes, _CHUNK_BYTES))]
