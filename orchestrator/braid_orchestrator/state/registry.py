"""Which replicas of which part of a braid there are, where, of which model, and how busy. Knows no connections.

A replica's entry is a lease: who stops renewing it is gone when it expires.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

from braid_orchestrator.state.codec import pack, unpack_record
from braid_orchestrator.state.store import StateStore
from braid_rpc.errors import CorruptStateError

_log = logging.getLogger(__name__)

_TABLE = "replicas"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "part": str,
    "replica_id": str,
    "host": str,
    "addresses": list,
    "model_hash": str,
    "tokenizer_hash": str,
    "num_sessions": int,
    "cache_bytes_free": int,
}


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """One replica of a shard (or of the fusion service, without hashes). ``addresses`` are gRPC targets; those of
    unix sockets serve who runs on the same ``host`` only."""

    part: str
    replica_id: str
    host: str
    addresses: tuple[str, ...]
    model_hash: str = ""
    tokenizer_hash: str = ""
    num_sessions: int = 0
    cache_bytes_free: int = 0


class Registry:
    """The replicas in a store."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def renew(self, record: ReplicaRecord, expiry_s: float) -> None:
        """Say that a replica is there, for so long. Raises: UnavailableError."""
        self._store.put(_TABLE, _key(record.part, record.replica_id), pack(asdict(record)), expiry_s)

    def remove(self, part: str, replica_id: str) -> None:
        """Say that it is leaving. Raises: UnavailableError."""
        self._store.remove(_TABLE, [_key(part, replica_id)])

    def replicas(self, part: str) -> list[ReplicaRecord]:
        """Those that are there now, by id. An entry that nobody can read is passed over, and told to the log.

        Raises: UnavailableError.
        """
        found: list[ReplicaRecord] = []
        for key, value in sorted(self._store.items(_TABLE).items()):
            if key.startswith(f"{part}/"):
                try:
                    found.append(_record(key, value))
                except CorruptStateError as error:
                    _log.warning("%s", error)
        return found


def _key(part: str, replica_id: str) -> str:
    return f"{part}/{replica_id}"


def _record(key: str, value: bytes) -> ReplicaRecord:
    what = f"replica {key}"
    fields = unpack_record(value, _FIELDS, what)
    addresses = tuple(fields.pop("addresses"))
    if not addresses or not all(isinstance(address, str) for address in addresses):
        raise CorruptStateError(f"state store: {what}: got addresses {addresses!r}, expected gRPC targets")
    return ReplicaRecord(addresses=addresses, **fields)
